"""Tools that several rules share.

sparse.py    Entry by entry: trim, drop, agree on signs
spectral.py  Singular vectors, a matrix at a time
"""
