"""Rules for combining task vectors: each file holds one function of the same name, the rule.

A rule takes the task vectors by task name, in the order of learning. It returns one task vector, or
(a routed rule) one for each task.
"""
