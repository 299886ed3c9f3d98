"""Pre-trained transformers, and the adapters, heads and mixtures that are put into them.

adapter_config.py        An adapter's configuration, as its file states it
adapter_targets.py       The layers that an adapter takes
adapters.py              PEFT modules on a backbone
backbone.py              The interface of a transformer: all that the rest knows of a model
bottleneck.py            Bottleneck adapters as a tuner of peft
encoder.py               A pooled feature of each example, and one linear head per task
examples.py              Examples as a model takes them, and batches of them
fitting.py               Whether an adapter belongs to a model
full.py                  Full fine-tuning as a tuner of peft
heads.py                 Linear heads, also on random features
inputs.py                Covariances of the inputs of layers
language.py              A transformer that answers with text
load.py                  Make the right kind of backbone from a checkpoint's files
logits.py                The answers of a model to a batch, and the right ones
matrices.py              Layers that multiply by a matrix
mixture.py               Low-rank experts beside frozen layers, and their gate
model_config.py          A model's `config.json`, read with care
model_files.py           The files of a pre-trained model
model_weights.py         The tensors in weight files, by their headers
outline.py               A backbone of shapes, without values
output_layer.py          Logits at the tokens of answers only
packing.py               Several examples in one line
patterns.py              Regular expressions, matched in bounded time
pretrained.py            Open a pre-trained model
prompts.py               Rows as prompts and answers, in tokens
quantised.py             A frozen model in 4 bits, by bitsandbytes
ranking.py               Log-probabilities of the choices behind a prompt
recomputing.py           Layers computed again in the backward pass, to save memory
resolution.py            Read images at another size than the checkpoint was made for
sentence_transformer.py  The files with which sentence-transformers reads an encoder
text_examples.py         Prompts with their answers as tensors
tokenizing.py            A tokenizer that agrees with its model
"""
