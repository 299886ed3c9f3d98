"""Code that several benchmarks share.

orders.py          Orders of tasks, by name or as a list
packaged_texts.py  Tables of texts that packages on PyPI carry
text_prompts.py    Prompts for language models on the text benchmark
"""
