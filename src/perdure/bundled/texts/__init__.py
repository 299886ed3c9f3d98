"""One file is one plain text, on which the loss of a language model is measured.

The file's name is the text's name, which is found through `registry.py`.

editorials.py  Sentences of newspaper editorials
"""
