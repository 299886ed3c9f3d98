"""The building blocks that several methods share.

anchor.py       The quadratic penalty of EWC, SI and MAS
fisher.py       The diagonal of the Fisher information of a module
frozen.py       Heads computed from sums of frozen features
per_example.py  Per-example gradients, computed a batch at a time
subspace.py     The subspace that the earlier tasks' inputs of a layer span
"""
