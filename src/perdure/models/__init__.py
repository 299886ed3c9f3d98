"""Pre-trained transformers and what is put into them: adapters, heads, mixtures.

adapter_config.py        An adapter's configuration, as its file states it
adapters.py              PEFT modules on a backbone
backbone.py              The interface of a transformer: all that the rest knows of a model
bottleneck.py            Bottleneck adapters as a tuner of peft
encoder.py               A pooled feature of each example, and one linear head per task
examples.py              Examples as a model takes them, and batches of them
full.py                  Full fine-tuning as a tuner of peft
heads.py                 Linear heads, also on random features
inputs.py                Covariances of what goes into layers
load.py                  From a checkpoint's files to the kind of backbone that it makes
logits.py                What a model says at each place where an answer is due
matrices.py              Layers that multiply by a matrix
mixture.py               Low-rank experts beside frozen layers, and their gate
model_config.py          A model's `config.json`, read with care
model_files.py           The files of a pre-trained model
model_weights.py         What the headers of weight files say
patterns.py              Regular expressions, matched in bounded time
pretrained.py            A pre-trained model, opened
resolution.py            Read images at another size than the checkpoint was made for
sentence_transformer.py  The files with which sentence-transformers reads an encoder
tokenizing.py            A tokenizer that agrees with its model
"""
