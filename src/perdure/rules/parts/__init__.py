"""Tools that several rules share.

sparse.py    Entry by entry: trim, drop, elect signs
spectral.py  Singular vectors, one matrix at a time
"""
