"""The command line.

app.py      The commands, in the order of `perdure --help`
demo.py     The demos
merge.py    The commands that combine what was learned into one model
options.py  The options and arguments that several commands have in common
outcome.py  What a command shows when it has done its work
read.py     The commands that read what is there
shell.py    What surrounds a command
train.py    The commands that teach a run, or make it forget
"""
