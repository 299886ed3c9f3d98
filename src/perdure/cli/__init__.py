"""The command line.

app.py      The commands, in the order of `perdure --help`
demo.py     The demos
merge.py    The commands that merge adapters or export a model
options.py  Options and arguments shared by several commands
outcome.py  The output of a command after it has finished
read.py     The commands that examine or use a run, or list names
shell.py    The environment of a command: streams, `--debug`, errors
sweep.py    The command that performs a sweep
train.py    The commands that train a run, or make it forget a task
"""
