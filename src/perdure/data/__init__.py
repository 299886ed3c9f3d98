"""Tasks loaded from tables and image folders; text is used exactly as written.

class_names.py   Class names from a label column
examples.py      Examples built from table rows, with standard column names
exemplars.py     Examples stored for replay
formats.py       Detection of the prompt and answer columns
graduated.py     Streams whose tasks fade into each other
image_folder.py  Image folders with one subfolder per class
images.py        Images in the form that models read
inputs.py        Inputs without classes
network.py       Forbid downloads, for dry runs
prompts.py       Prompts and free-text answers, built from the cells of a row
rows.py          Tables read row by row, without conversion
splits.py        Splits of data sets into train, validation and test
table.py         Tasks from your own data
table_files.py   Row readers for CSV, JSON and Parquet
table_output.py  Row writers for CSV, JSON and Parquet
task.py          `Task` and `TaskStream`
"""
