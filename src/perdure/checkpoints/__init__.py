"""Merging PEFT folders and models on disk, without a run.

auto_class.py     The transformers class that loads a model
base.py           A pre-trained model on disk
card.py           A merge's summary, for the terminal and as a model card
coverage.py       The comparison of an adapter's tensors with its configuration
experts.py        LoRA on single parameters
export.py         A task vector as a PEFT LoRA folder that stock peft loads
fit.py            Adapters matched to a base model on disk
fold.py           W + ΔW, written from one safetensors file to another
layer_names.py    The mapping from an adapter's layers to a checkpoint's weights
merge.py          The merge of PEFT folders and a base into one model or adapter
merged_folder.py  The files that a merge writes
merger.py         A rule's result for matched adapters, before it is written
peft_folder.py    A PEFT folder, read as JSON and safetensors without peft
skeleton.py       The base as transformers builds it, without allocating weights
targets.py        The layers that an adapter's configuration targets, as in peft
vocabulary.py     The tables with one row per token
weights.py        The location of a layer's weight
"""
