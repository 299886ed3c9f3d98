"""What the models and data of packages share.

model.py     A pre-trained model out of a package
packages.py  Packages on PyPI, fetched with pip and read offline
"""
