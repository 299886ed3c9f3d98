"""Tools that merge PEFT folders and models on disk, without a run.

auto_class.py     The transformers class that loads a model
base.py           A pre-trained model on disk
card.py           The summary of a merge, for the terminal and as a model card
coverage.py       The comparison of an adapter's tensors with its configuration
experts.py        LoRA on individual parameters
export.py         Functions that save a task vector as a LoRA adapter for peft
fit.py            Functions that match adapters to a base model on disk
fold.py           Functions that add ΔW to the weights in a safetensors file
layer_names.py    The mapping from an adapter's layers to a checkpoint's weights
merge.py          The function that merges PEFT folders into one model or adapter
merged_folder.py  The files that a merge writes
merger.py         The result of a rule for matched adapters, before it is written
peft_folder.py    A PEFT folder, read as JSON and safetensors without peft
skeleton.py       The base as built by transformers, without allocating weights
targets.py        The layers that an adapter's configuration targets, as in peft
vocabulary.py     The token tables, which have one row per token
weights.py        The location of a layer's weight
"""
