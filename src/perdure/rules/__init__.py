"""Rules that combine task vectors. Each file has one rule, a function named after the file.

A rule takes a dict of task vectors by task name, in the order the tasks were learned. It
returns one task vector or, if it is routed, one per task or a mixture of experts.
"""
