"""Pre-trained transformers, and the adapters, heads and mixtures that are added to them.

adapter_config.py        Read an adapter's configuration from its file
adapter_targets.py       Choose the layers that get an adapter
adapters.py              PEFT modules on a backbone
backbone.py              The interface through which the rest of perdure uses a model
bottleneck.py            Bottleneck adapters as a PEFT tuner
encoder.py               Encoders, with one pooled feature vector per example and one head per task
examples.py              Examples prepared for a model, and batches of them
fitting.py               Check that an adapter fits a model
full.py                  Full fine-tuning as a PEFT tuner
headless.py              Backbones without heads
heads.py                 Heads that are linear in the features or in random features
inputs.py                Covariances of layer inputs
language.py              Language models
load.py                  Build the right kind of backbone from a checkpoint
logits.py                A model's logits for a batch, with their targets
matrices.py              Linear layers and GPT-2's `Conv1D`
mixture.py               Low-rank experts added to frozen layers, and their gate
model_config.py          Read and check a model's `config.json`
model_files.py           The files of a pre-trained model
model_weights.py         Shapes and dtypes of the tensors in weight files
outline.py               Backbones without weights, for dry runs
output_layer.py          Compute logits only at the tokens of the answers
packing.py               Pack several examples into one row
patterns.py              Match regular expressions within a time limit
placement.py             Weights that several processes shard, and parts of them
pretrained.py            Load a pre-trained model and its processor
prompts.py               Turn rows into the tokens of prompts and answers
quantised.py             Frozen models in 4 bits, with bitsandbytes
ranking.py               Log-probabilities of the choices after a prompt
recomputing.py           Gradient checkpointing
resolution.py            Change the image size of a vision transformer
sentence_transformer.py  Save an encoder for sentence-transformers
shares.py                The share of each process when several measure one model
text_examples.py         Batches of prompts with their answers
tokenizing.py            Load a tokenizer and match it to its model
"""
