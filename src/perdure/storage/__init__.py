"""Files that appear whole or not at all, the lock of a folder, and tensors on disk.

files.py    Files read with care and written whole
lock.py     One process at a time writes a run
partial.py  Files and folders that are being written, under names that nobody can foresee
staging.py  A folder that is there whole or not at all
tensors.py  Safetensors files without loading them
"""
