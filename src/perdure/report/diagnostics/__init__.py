"""How diagnostics are shown: each file is one diagnostic, discovered by its name.

A file declares a `Diagnostic`: the numbers in diagnostics.json, how to read them, and how they look
on the page and on the terminal. The file of the same name in `perdure.analysis` computes the
numbers. There are two files because computing needs torch, and a report is made without it.
`parts` is what several of them share.
"""
