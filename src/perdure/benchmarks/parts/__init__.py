"""Code shared by several benchmarks.

mnist.py           Images of digits, from a package or from idx files
orders.py          Orders of tasks, by name or as a list
packaged_texts.py  Tables of texts from packages on PyPI
text_prompts.py    Prompts and text pairs of the text benchmark
"""
