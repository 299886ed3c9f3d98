"""A run: one stream, one method, one rule, one seed; and its folder, which is read after training.

adapter_folder.py  The files of an adapter
answers.py         The answers of a run's language model
begin.py           Begin or continue a run with objects made in Python
changes.py         The differences between two recipes
counting.py        Count what a run would do
dry_run.py         Those counts, and the text that says them
environment.py     Versions, source revision and hardware
expected.py        Tasks whose data would have to be downloaded
export.py          The combined model for others to load: a stock checkpoint, or one adapter
export_card.py     The model card of an exported model
extend.py          Measure a run again, let it learn more, or let it forget
folder.py          The run folder as a user reads it in Python
forget.py          Take a task out of a recipe and out of a folder
inputs.py          Rows of a table, or prompts, as what a run's model reads
job.py             A run's plan, checked before training
language_card.py   The part of a model card that says how a language model is asked
layout.py          The files of the folder as plain values, without torch
model.py           A finished run as one model
more_data.py       The recipe of a run that learns one more table
next_task.py       Learn the next task; all that is kept of it
old_names.py       Names that older folders use, in today's words
past.py            Learned tasks whose examples may be gone
predictions.py     Predictions for a table
put.py             Write or remove the files of the folder
recipe.py          Recipes, validated against what they name
resume.py          Give a run's tasks back to a backbone; find what is left to do
schema.py          The contents of each file of the folder, and their check
sources.py         The tasks that a report or a model was made from
state.py           The folder read once, as a value
story.py           Learn, merge, evaluate and save each task of a stream
task_folder.py     The folder of one task
tune.py            Tune a method on validation data of the first tasks
verify.py          Check every file of a run
writer.py          The writer of the folder; only the first process writes
"""
