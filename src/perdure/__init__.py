"""perdure teaches one pre-trained transformer new tasks, one after another, without forgetting the old ones."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdure.adapters import Adapter
    from perdure.alignment import Alignment, Gaussians, align
    from perdure.backbone import Backbone
    from perdure.data import read_tasks
    from perdure.diagnose import diagnose
    from perdure.errors import (
        BackboneError,
        CheckpointError,
        DataError,
        FetchError,
        InputError,
        OutputError,
        PerdureError,
        PerdureWarning,
        RunError,
        Stopped,
        TrainingError,
        UnknownName,
    )
    from perdure.forget import Forgotten, forget
    from perdure.learn import learn
    from perdure.measure import Evaluation
    from perdure.merge import Combined, combine, task_vectors
    from perdure.merge_card import Merged
    from perdure.merge_checkpoint import merge_checkpoint
    from perdure.method import Method, PeftMethod
    from perdure.mixture import Mixture
    from perdure.model import Model, Prediction
    from perdure.recipe import Recipe
    from perdure.registry import find, names
    from perdure.results import Run
    from perdure.rule_settings import Rule
    from perdure.run import run
    from perdure.runs import evaluate_run, learn_more
    from perdure.search import Search
    from perdure.statistics import Statistics
    from perdure.stream import Task, TaskStream
    from perdure.task_id import TaskPosterior
    from perdure.task_vector import LowRank, TaskVector
    from perdure.training import Training
    from perdure.verify import Verification, verify

__all__ = [
    "Adapter",
    "Alignment",
    "Backbone",
    "BackboneError",
    "CheckpointError",
    "Combined",
    "DataError",
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
    "OutputError",
    "PeftMethod",
    "PerdureError",
    "PerdureWarning",
    "Prediction",
    "Recipe",
    "Rule",
    "Run",
    "RunError",
    "Search",
    "Statistics",
    "Stopped",
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
    "read_tasks",
    "run",
    "task_vectors",
    "verify",
]

# Where each name is defined: the module is imported when the name is first used, because transformers and peft are
# 250 MB of memory and four seconds that merging two folders on disk does not need.
_HOMES = {
    "adapters": ["Adapter"],
    "alignment": ["Alignment", "Gaussians", "align"],
    "backbone": ["Backbone"],
    "data": ["read_tasks"],
    "diagnose": ["diagnose"],
    "errors": [
        "BackboneError",
        "CheckpointError",
        "DataError",
        "FetchError",
        "InputError",
        "OutputError",
        "PerdureError",
        "PerdureWarning",
        "RunError",
        "Stopped",
        "TrainingError",
        "UnknownName",
    ],
    "forget": ["Forgotten", "forget"],
    "learn": ["learn"],
    "measure": ["Evaluation"],
    "merge": ["Combined", "combine", "task_vectors"],
    "merge_card": ["Merged"],
    "merge_checkpoint": ["merge_checkpoint"],
    "mixture": ["Mixture"],
    "method": ["Method", "PeftMethod"],
    "model": ["Model", "Prediction"],
    "recipe": ["Recipe"],
    "registry": ["find", "names"],
    "results": ["Run"],
    "rule_settings": ["Rule"],
    "run": ["run"],
    "runs": ["evaluate_run", "learn_more"],
    "search": ["Search"],
    "statistics": ["Statistics"],
    "stream": ["Task", "TaskStream"],
    "task_id": ["TaskPosterior"],
    "task_vector": ["LowRank", "TaskVector"],
    "training": ["Training"],
    "verify": ["Verification", "verify"],
}


class _Package(ModuleType):
    """Some functions are called as their module, and stay functions when Python binds the module here."""

    def __setattr__(self, name: str, value: Any) -> None:
        same = isinstance(value, ModuleType) and name in __all__
        super().__setattr__(name, getattr(value, name) if same else value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"perdure.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module `perdure` has no attribute `{name}`")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
