"""Tools that several rules share.

sparse.py Operations on single entries: trim, drop, agree on signs spectral.py Singular vectors, a
matrix at a time
"""
