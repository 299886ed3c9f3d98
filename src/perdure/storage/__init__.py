"""Atomic file and folder writes, a per-run lock, and tensors on disk.

files.py    Careful reads and atomic writes of single files
lock.py     One process at a time writes a run
partial.py  Files and folders still being written, under unpredictable names
staging.py  Atomic writes of whole folders
tensors.py  Safetensors files, read without loading them into memory
"""
