"""Merging PEFT folders and models on disk, without a run.

auto_class.py     The class of transformers that loads a model whole
base.py           A pre-trained model on disk
card.py           What a merger did, for the terminal and a model card
coverage.py       Whether an adapter's file and its configuration speak of the same layers
experts.py        LoRA of single parameters
export.py         A task vector as a PEFT LoRA folder that stock peft loads
fit.py            Adapters fitted to a base model on disk
fold.py           W + ΔW, written from one safetensors file into another
layer_names.py    Which tensor of a checkpoint belongs to which layer
merge.py          PEFT folders and a base model become one model, or one adapter
merged_folder.py  The files of a merger
merger.py         What a rule makes of fitted adapters, before it is written
peft_folder.py    A PEFT folder as a value, read as JSON and safetensors without peft
skeleton.py       The base as transformers builds it, without memory for its values
targets.py        Which layers an adapter's configuration names, as peft reads it
vocabulary.py     The tables with a row for each token
weights.py        Where the weight of a layer lies
"""
