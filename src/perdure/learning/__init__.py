"""Learning one task after others: the one training loop, and the hooks of a method.

alignment.py        Heads trained together on samples of remembered classes
engine.py           Several processes that train one model
loop.py             The one training loop
method.py           The interface of a method
optimizer_state.py  The state of any optimizer, by name
progress.py         One task's training: its progress, and how it is resumed
snapshot.py         The state in the middle of a task, as one file
stopping.py         Ctrl-C, SIGTERM and the like, taken as a request to stop
training.py         The training settings
wrapper.py          A method that wraps another one
"""
