"""Teach one pre-trained transformer new tasks, one after another, without forgetting old ones."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perdure.analysis.diagnose import diagnose
    from perdure.checkpoints.card import Merged
    from perdure.checkpoints.merge import merge_checkpoint
    from perdure.data.table import read_tasks
    from perdure.data.task import Task, TaskStream
    from perdure.errors import (
        BackboneError,
        CheckFailed,
        CheckpointError,
        DataError,
        FetchError,
        InputError,
        OutOfMemory,
        OutputError,
        PerdureError,
        PerdureWarning,
        RunError,
        Stopped,
        TrainingError,
        UnknownName,
    )
    from perdure.evaluation.measure import Evaluation
    from perdure.evaluation.posterior import PosteriorSettings, TaskPosterior
    from perdure.learning.alignment import Alignment, align
    from perdure.learning.loop import Session, learn
    from perdure.learning.method import Method, PeftMethod
    from perdure.learning.training import Training
    from perdure.merging.combine import Combined, combine, task_vectors
    from perdure.merging.rule_settings import Rule
    from perdure.merging.search import Search
    from perdure.models.adapters import Adapter
    from perdure.models.backbone import Backbone
    from perdure.models.mixture import Mixture
    from perdure.models.network import Network
    from perdure.registry import find, names
    from perdure.runs.begin import run
    from perdure.runs.dry_run import DryRun
    from perdure.runs.extend import evaluate_run, forget, learn_more
    from perdure.runs.folder import Run
    from perdure.runs.forget import Forgotten
    from perdure.runs.model import Model
    from perdure.runs.past import past_tasks
    from perdure.runs.prediction import Prediction
    from perdure.runs.recipe import Recipe
    from perdure.runs.verify import Verification, verify
    from perdure.sweeps.sweep import Sweep, sweep
    from perdure.vectors.gaussians import Gaussians
    from perdure.vectors.statistics import Statistics
    from perdure.vectors.task_vector import LowRank, TaskVector

__all__ = [
    "Adapter",
    "Alignment",
    "Backbone",
    "BackboneError",
    "CheckFailed",
    "CheckpointError",
    "Combined",
    "DataError",
    "DryRun",
    "Evaluation",
    "FetchError",
    "Forgotten",
    "Gaussians",
    "InputError",
    "LowRank",
    "Merged",
    "Method",
    "Mixture",
    "Model",
    "Network",
    "OutOfMemory",
    "OutputError",
    "PeftMethod",
    "PerdureError",
    "PerdureWarning",
    "PosteriorSettings",
    "Prediction",
    "Recipe",
    "Rule",
    "Run",
    "RunError",
    "Search",
    "Session",
    "Statistics",
    "Stopped",
    "Sweep",
    "Task",
    "TaskPosterior",
    "TaskStream",
    "TaskVector",
    "Training",
    "TrainingError",
    "UnknownName",
    "Verification",
    "align",
    "combine",
    "diagnose",
    "evaluate_run",
    "find",
    "forget",
    "learn",
    "learn_more",
    "merge_checkpoint",
    "names",
    "past_tasks",
    "read_tasks",
    "run",
    "sweep",
    "task_vectors",
    "verify",
]

# Where each name is defined. The module is imported when the name is first used, because
# transformers and peft take 250 MB of memory and four seconds, and merging two folders on
# disk needs neither. The imports above are for type checkers only; a test compares the
# two lists.
_HOMES = {
    "analysis.diagnose": ["diagnose"],
    "checkpoints.card": ["Merged"],
    "checkpoints.merge": ["merge_checkpoint"],
    "data.table": ["read_tasks"],
    "data.task": ["Task", "TaskStream"],
    "errors": [
        "BackboneError",
        "CheckFailed",
        "CheckpointError",
        "DataError",
        "FetchError",
        "InputError",
        "OutOfMemory",
        "OutputError",
        "PerdureError",
        "PerdureWarning",
        "RunError",
        "Stopped",
        "TrainingError",
        "UnknownName",
    ],
    "evaluation.measure": ["Evaluation"],
    "evaluation.posterior": ["PosteriorSettings", "TaskPosterior"],
    "learning.alignment": ["Alignment", "align"],
    "learning.loop": ["Session", "learn"],
    "learning.method": ["Method", "PeftMethod"],
    "learning.training": ["Training"],
    "merging.combine": ["Combined", "combine", "task_vectors"],
    "merging.rule_settings": ["Rule"],
    "merging.search": ["Search"],
    "models.adapters": ["Adapter"],
    "models.backbone": ["Backbone"],
    "models.mixture": ["Mixture"],
    "models.network": ["Network"],
    "registry": ["find", "names"],
    "runs.begin": ["run"],
    "runs.dry_run": ["DryRun"],
    "runs.extend": ["evaluate_run", "forget", "learn_more"],
    "runs.folder": ["Run"],
    "runs.forget": ["Forgotten"],
    "runs.model": ["Model"],
    "runs.past": ["past_tasks"],
    "runs.prediction": ["Prediction"],
    "runs.recipe": ["Recipe"],
    "runs.verify": ["Verification", "verify"],
    "sweeps.sweep": ["Sweep", "sweep"],
    "vectors.gaussians": ["Gaussians"],
    "vectors.statistics": ["Statistics"],
    "vectors.task_vector": ["LowRank", "TaskVector"],
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"perdure.{home}"), name)
            globals()[name] = value  # the next access does not call `__getattr__`
            return value
    raise AttributeError(f"module `perdure` has no attribute `{name}`")


def __dir__() -> list[str]:
    # so that completion in a notebook also shows the names that are not imported yet
    return sorted({*globals(), *__all__})
