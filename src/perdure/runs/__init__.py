"""Runs: learn a stream of tasks with one method, rule and seed, and save it in a run folder.

adapter_folder.py  Save and load the files of an adapter
answers.py         Answers of a run's language model
backbones.py       Create the backbone of a recipe
begin.py           Start or continue a run from Python objects
changes.py         Differences between two recipes
counting.py        Count the sizes and steps of a run
derived.py         Read the derived files of a run folder
dry_run.py         The result of a dry run, and its text
environment.py     Versions, source revision and hardware
expected.py        Placeholders for tasks whose data would have to be downloaded
export.py          Export the combined model as a stock checkpoint or as one adapter
export_card.py     The model card of an exported model
export_heads.py    The heads of an exported encoder, and what it scores with them
export_run.py      Check, measure and write what an export asks for
extend.py          Measure a run again, teach it more tasks, or make it forget one
folder.py          The Python interface to a run folder
forget.py          Remove a task from a recipe and from a run folder
inputs.py          Model inputs from the rows of a table or from prompts
job.py             The plan of a run, checked before training
language_card.py   The part of a model card about prompting a language model
layout.py          Read the files of a run folder as plain values, without torch
model.py           A finished run as one model
more_data.py       The recipe of a run that learns one more table
next_task.py       Learn the next task
old_names.py       Names used by older run folders, and their current equivalents
past.py            Placeholders for learned tasks whose examples are gone
prediction.py      The answer of a classifier, which may be withheld
predictions.py     Add predictions to a table
put.py             Write or remove the files of a run folder
recipe.py          Recipes and their validation
resume.py          Restore learned tasks on a backbone and find out what is left to do
schema.py          Schemas of the files in a run folder
sources.py         Record which tasks a file was made from
state.py           The contents of a run folder, read once
story.py           The main loop: learn, combine, measure and save each task of a stream
streams.py         Streams of tasks from the entries of a recipe
task_folder.py     The folder of one task
verify.py          Check every file of a run
writer.py          The writer of a run folder; only the first process writes
"""
