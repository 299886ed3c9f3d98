"""The answers of a model that has learned tasks, and the scores computed from them.

answers.py         Answers to a task's examples: classes or free text
calibration.py     Calibration of the confidence, and confusion matrices
closed_form.py     Heads in closed form on the combined model
feature_folder.py  Features of frozen encoders on disk, for the runs of a sweep
general.py         The abilities of a language model outside its tasks
measure.py         The measurement of a system on all tasks
metrics.py         Metrics computed from the accuracy matrix R
posterior.py       The task posterior p(t | x)
progress_bar.py    Progress bars on a terminal, and progress lines in a log
random_inputs.py   Random texts and images, to compare two models on
scales.py          The search for a rule's scale on validation data
score.py           Logits, probabilities and answers of a combined model
scores/            The scores of a task, one per file
subsequences.py    Longest common subsequences of two texts
system.py          A backbone, the tasks it has learned, and the rule that combines them
task_score.py      The interface of a task's score
unknown.py         Inputs that belong to no task
validation.py      The fit of the Gaussian classes to a task's validation examples
"""
