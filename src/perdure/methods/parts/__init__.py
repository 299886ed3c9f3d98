"""Building blocks that several methods share.

anchor.py        The quadratic penalty of EWC, SI and MAS
discriminant.py  Linear discriminant analysis from sums of features
fisher.py        The diagonal of the Fisher information of a module
frozen.py        Heads computed from sums of features of the frozen backbone
per_example.py   Per-example gradients, computed one batch at a time
subspace.py      The subspace spanned by a layer's inputs from earlier tasks
"""
