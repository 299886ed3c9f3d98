"""The training of one task after another: the training loop and the hooks of a method.

alignment.py        Joint training of all heads on features sampled from remembered classes
engine.py           Distributed training on accelerate: processes, devices and sharding
loop.py             The training loop
memory.py           A full memory, reported with the settings that help
method.py           The interface of a method
needs.py            The check that a model and its tasks have what a method needs
optimizer_state.py  Saving and restoring the state of any optimizer
optimizers.py       The optimizers that `training.optimizer` chooses
progress.py         The training of one task: its progress, and how it is resumed
snapshot.py         A checkpoint in the middle of a task, as a single file
stopping.py         Ctrl-C, SIGTERM and similar signals, handled as requests to stop
training.py         Settings for training
wrapper.py          The base class of methods that wrap another method
"""
