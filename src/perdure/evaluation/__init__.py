"""What a model with its learned tasks answers, and the numbers made of that.

metrics.py       Numbers from the accuracy matrix R
posterior.py     The task posterior p(t | x)
progress_bar.py  Bars on a terminal, and lines in a log
score.py         Score a combined model on tasks
"""
