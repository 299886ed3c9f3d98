"""Files that appear whole or not at all, the lock of a folder, and tensors on disk.

files.py Files read with care and written whole lock.py One process at a time writes a run
partial.py Files and folders being written, under unpredictable names staging.py A folder that
appears whole or not at all tensors.py Safetensors files, read without loading them whole
"""
