"""How a task is learned after others: the one loop, and the hooks of a method.

alignment.py        Heads trained together on samples of remembered classes
engine.py           Several processes that train one model
loop.py             The one training loop
method.py           The interface of a method
optimizer_state.py  The state of any optimizer, by name
progress.py         Where the training of a task is
snapshot.py         The state inside a task, as one file
stopping.py         Ctrl-C, SIGTERM and the like as a wish
training.py         The settings of training
wrapper.py          A method around another
"""
