"""The presentation of the diagnostics, with one file for each, which is found by its name.

A file declares a `Diagnostic`: its numbers in diagnostics.json, how to read them, and how
they are shown on the page and on the terminal. The file of the same name in
`perdure.analysis` computes the numbers. There are two files because the computation needs
torch, but a report must not need it. `parts` contains the code that several diagnostics
share.
"""
