"""Pre-trained models from packages on PyPI, for demos and tests, with one file per model.

The name of a file is the name of a backbone. Backbones are found through `registry.py`;
packages below this one do not import these files.

dinov2.py   DINOv2 ViT-S/14, from an ONNX file
flan_t5.py  Flan-T5-small, fine-tuned to write titles, from 8-bit ONNX files
minilm.py   all-MiniLM-L6-v2
smollm2.py  SmolLM2-135M-Instruct, from a GGUF file
texts/      Plain texts for measuring the loss of a language model
parts/      Packages with models or data, fetched with pip and read offline
"""
