"""Rules that combine task vectors. Each file defines one rule, a function named after the file.

A rule takes a dict that maps task names to task vectors, in the order the tasks were
learned. It returns a single task vector; a routed rule returns one per task or a mixture
of experts.
"""
