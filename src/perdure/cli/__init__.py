"""The command line.

app.py      The commands, in the order of `perdure --help`
demo.py     The demos
merge.py    The commands that combine what was learned into one model
options.py  The options and arguments that several commands share
outcome.py  The output of a command when its work is done
read.py     The commands that only read a run, or list names
shell.py    The surroundings of a command: streams, `--debug`, errors
train.py    The commands that teach a run, or make it forget
"""
