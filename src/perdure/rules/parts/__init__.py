"""Tools shared by several rules.

sparse.py    Operations on individual entries: trimming, dropping, electing signs
spectral.py  Operations on singular vectors, one matrix at a time
"""
