"""Plain texts for measuring the loss of a language model, with one file per text.

The name of a file is the name of its text. Texts are found through `registry.py`.

editorials.py  Sentences of newspaper editorials
"""
