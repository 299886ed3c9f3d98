"""The machinery behind rules: their interface, the merging itself, and the search for scales.

combine.py        Functions that combine adapters into one model
rule.py           The interface of a rule
rule_settings.py  A rule with its settings
scaled.py         Task vectors in a model, with scales that a search can change
search.py         The search for scales
tpe.py            Optuna's TPE sampler behind an ask-and-tell interface
"""
