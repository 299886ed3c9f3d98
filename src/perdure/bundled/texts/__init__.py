"""Each file is a plain text for measuring the loss of a language model.

The file's name is the text's name, which is found through `registry.py`.

editorials.py  Sentences of newspaper editorials
"""
