"""Rules for how task vectors act together: one function is one rule, with the name of its file.

A rule takes the task vectors by task name, in the order in which the tasks were learned.
It returns one task vector, or (a routed rule) one for each task.
"""
