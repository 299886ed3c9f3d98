"""Code that the models and the data of packages share.

model.py     A pre-trained model from a package
packages.py  Packages on PyPI, fetched with pip and read offline
"""
