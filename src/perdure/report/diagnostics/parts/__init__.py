"""Code that the files of single diagnostics share.

declaration.py  The declaration that each of them makes
figures.py      Lines, bars and the reliability diagram, as SVG
numbers.py      Lists of numbers as arrays
pictures.py     Figures with the numbers behind them
"""
