"""Code that the files of the diagnostics share.

declaration.py  The declaration in the file of a diagnostic
figures.py      Lines, bars and the reliability diagram, as SVG
numbers.py      Conversion of lists of numbers to arrays
pictures.py     Figures with their numbers as tables
"""
