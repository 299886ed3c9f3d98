"""Merging PEFT folders and models on disk, without a run.

auto_class.py The class of transformers that loads a model base.py A pre-trained model on disk
card.py The result of a merge, for the terminal and as a model card coverage.py The comparison of an
adapter's file with its configuration experts.py LoRA of single parameters export.py A task vector
as a PEFT LoRA folder that stock peft loads fit.py Adapters fitted to a base model on disk fold.py W
+ ΔW, written from one safetensors file into another layer_names.py The weight in a checkpoint of
each layer that an adapter names merge.py PEFT folders and a base model become one model, or one
adapter merged_folder.py The files of a merge merger.py The result of a rule for fitted adapters,
before it is written peft_folder.py A PEFT folder as a value, read as JSON and safetensors without
peft skeleton.py The base as transformers builds it, without memory for its values targets.py The
layers that an adapter's configuration names, as peft reads it vocabulary.py The tables with a row
for each token weights.py The position of a layer's weight
"""
