"""Code shared by several benchmarks.

json_files.py      JSON files of published benchmarks
mnist.py           Images of digits, from a package or from idx files
orders.py          Orders of tasks, by name or as a list
packaged_texts.py  Tables of texts from packages on PyPI
text_folders.py    Folders of the text benchmark, in perdure's form or O-LoRA's
text_prompts.py    Prompts and text pairs of the text benchmark
"""
