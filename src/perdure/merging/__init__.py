"""The engine of rules: their interface, the combination of task vectors, the search of a scale.

combine.py        From adapters to one model
rule.py           The interface of a rule
rule_settings.py  A rule with its settings
scaled.py         Task vectors in a model, with scales that a search moves
search.py         The search for scales
tpe.py            Optuna's TPE, asked for candidates and told their scores
"""
