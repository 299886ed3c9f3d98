"""Building blocks that several methods share.

anchor.py         The quadratic penalty of EWC, SI and MAS
choice.py         How many examples replay stores, and which
conflict.py       Conflicts between the gradients of two losses
depths.py         Distillation of hidden states at several depths
discriminant.py   Linear discriminant analysis from sums of features
fisher.py         The diagonal of the Fisher information of a module
frozen.py         Heads computed from sums of features of the frozen backbone
gaussian.py       A mean-field Gaussian over the trained parameters
generated.py      Generated examples for replay, as a method remembers them
lookahead.py      A gradient computed after a trial step
per_example.py    Per-example gradients, computed one batch at a time
posteriors.py     The posteriors of the last tasks
reservoir.py      A uniform sample of the examples of all tasks
sampled.py        Answers and prompts that are sampled from a language model
subspace.py       The subspace spanned by a layer's inputs from earlier tasks
surprise.py       How improbable a model finds examples
teacher.py        The model with the parameters that it had when a task began
variational.py    Variational learning of the parameters of a module and heads
weight_fisher.py  The diagonal of the Fisher information of the weights that LoRA changes
"""
