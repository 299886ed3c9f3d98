"""A run: one stream, one method, one rule, one seed; and its folder, which is read after training.

adapter_folder.py  What a task has learned, as files
changes.py         What has changed between two recipes
environment.py     Versions, source revision and hardware
export_card.py     What an exported model can do, and what it cannot
extend.py          Measure a run again, or let it learn more
folder.py          The run folder, written and read
forget.py          Take a task out of a run
job.py             All that a run needs, checked before training
layout.py          The files of the folder as plain values, without torch
measure.py         Combine and score what was learned
model.py           A finished run as one model
past.py            Learned tasks whose examples may be gone
predictions.py     Predictions for a table
recipe.py          Recipes, validated against what they name
resume.py          A run's tasks, given back to a backbone
schema.py          What stands in each file of the folder, and the check of it
sources.py         The tasks that a report or a model was made of
story.py           Learn, merge, evaluate and save each task of a stream
task_folder.py     All that is kept of one task, and its folder
tune.py            Tune a method on validation data of the first tasks
verify.py          Check every file of a run
"""
