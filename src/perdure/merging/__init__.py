"""The engine of rules: what a rule is, how task vectors are combined by one, and the search of a scale.

combine.py        From adapters to one model
rule.py           The interface of a rule
rule_settings.py  A rule with its settings
scaled.py         Task vectors in a model, with scales that can be moved
search.py         The search of scales
tpe.py            Optuna's TPE, asked for candidates and told their scores
"""
