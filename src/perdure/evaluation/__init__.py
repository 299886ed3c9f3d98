"""The answers of a model that has learned tasks, and the scores computed from them.

answers.py       Answers to a task's examples: classes, or free text
calibration.py   How well confidence matches accuracy; confusion
general.py       What a language model can still do besides its tasks
measure.py       Score a system on tasks; the values are returned
metrics.py       Numbers from the accuracy matrix R
posterior.py     The task posterior p(t | x)
progress_bar.py  Bars on a terminal, and lines in a log
scales.py        Find a rule's scale on validation data
score.py         Logits, probabilities and answers of a combined model
scores/          One file is one score of a task
system.py        Backbone, learned tasks and rule: the thing that answers
task_score.py    What a score of a task is
"""
