"""Sweeps: many runs of one recipe, each with other settings, in several processes or on a cluster.

sweep_file.py  Read SWEEP.yaml: a recipe, and what varies
orders.py      The setting `order`, whatever the stream calls it
trials.py      Everything that varies → trials, with their settings, labels and folders
folder.py      The folder of a sweep, read and written without torch
trial.py       Perform one trial: learn, measure, and measure with other rules
executor.py    What an executor promises, and the outcome of a trial
worker.py      A process that performs one trial after another
local.py       The executor `local`: processes on this machine
on_ray.py      The executor `ray`: tasks on a Ray cluster
progress.py    The table that shows how far a sweep is
sweep.py       Perform all trials that are missing, on any executor
"""
