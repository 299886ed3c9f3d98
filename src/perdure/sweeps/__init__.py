"""Sweeps: many runs of one recipe, each with other settings, in several processes or on a cluster.

sweep_file.py    Read SWEEP.yaml: a recipe, and what varies
orders.py        The setting `order`, whatever the stream calls it
trials.py        Everything that varies → trials, with their settings, labels and folders
folder.py        The folder of a sweep, read and written without torch
sweep.py         Perform all trials that are missing, on any executor
tune.py          A sweep that searches: choose settings, and learn from their scores
tuning.py        The protocol of such a search, and its result
tuning_file.py   The trials of a search on disk
search_space.py  The settings that are searched, and the next ones to try
performing.py    Perform jobs, record each outcome, and stop when asked
executor.py      What an executor promises, its jobs and their outcomes
in_process.py    An executor: this process, one trial after another
local.py         The executor `local`: processes on this machine
on_ray.py        The executor `ray`: tasks on a Ray cluster
worker.py        A process that performs one trial after another
trial.py         Perform a trial of any kind, with every error as an outcome
whole_run.py     A trial of a sweep: learn, measure, and measure with other rules
first_tasks.py   A trial of tuning: learn the first tasks, and score them on validation examples
progress.py      The table that shows how far a sweep is
"""
