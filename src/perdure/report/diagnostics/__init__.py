"""How each diagnostic is shown: one file is one diagnostic, found by its name, and `parts` is what several share.

A file declares a `Diagnostic`: the numbers that stand in diagnostics.json, how they are read, and how they look on the
page and on the terminal. The file of the same name in `perdure.analysis` computes the numbers. There are two files
because a report is made without torch, which computing needs.
"""
