"""What the files of single diagnostics share.

declaration.py  What each of them declares
figures.py      Lines, bars and the reliability diagram, as SVG
numbers.py      Lists of numbers as arrays
pictures.py     Figures with the numbers that they were drawn from
"""
