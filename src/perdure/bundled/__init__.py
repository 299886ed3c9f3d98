"""Each file is a pre-trained model from a package on PyPI, for demos and tests.

The file's name is the name of a backbone, which is found through `registry.py`: no package below
this one imports these files.

dinov2.py   DINOv2 ViT-S/14, from an ONNX file
flan_t5.py  Flan-T5-small, fine-tuned to write titles, from 8-bit ONNX files
minilm.py   all-MiniLM-L6-v2
smollm2.py  SmolLM2-135M-Instruct, from a GGUF file
texts/      Plain texts, on which a language model is measured
parts/      Packages, fetched with pip and read offline; also those that carry data
"""
