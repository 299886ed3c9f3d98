"""Tasks from tables and folders of images, which are learned exactly as they are written.

class_names.py   The classes of a column of labels
examples.py      Rows as examples: inputs under one name, classes as text
exemplars.py     Examples that are kept for replay
formats.py       The columns of a table that hold the prompt and the answer
image_folder.py  A folder of images, in one folder per class
images.py        Images as the models read them
network.py       Whether anything may be downloaded now
prompts.py       Prompts, and answers in free text, from the cells of a row
rows.py          Tables, read row by row as they are written
splits.py        Examples, cut into splits
table.py         Your own data as tasks
table_files.py   Readers for the rows of CSV, JSON and Parquet
table_output.py  Tables, written row by row
task.py          `Task` and `TaskStream`
"""
