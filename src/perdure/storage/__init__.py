"""Atomic file and folder writes, a per-run lock, and tensors on disk.

files.py    Safe reads and atomic writes of single files
lock.py     A lock that allows one process at a time to write to a run
partial.py  Temporary files and folders with unpredictable names
staging.py  Atomic writes of entire folders
tensors.py  Safetensors files, read without loading them entirely into memory
"""
