"""perdure teaches one pre-trained transformer new tasks, one after another, without forgetting the old ones."""

from perdure.adapters import Adapter
from perdure.alignment import Alignment, Gaussians, align
from perdure.backbone import Backbone
from perdure.data import read_tasks
from perdure.errors import (
    BackboneError,
    DataError,
    FetchError,
    InputError,
    PerdureError,
    PerdureWarning,
    RunError,
    TrainingError,
    UnknownName,
)
from perdure.learn import Training, learn
from perdure.merge import Combined, Rule, combine, task_vectors
from perdure.method import Method
from perdure.model import Model, Prediction
from perdure.recipe import Recipe
from perdure.registry import find, names
from perdure.results import Run
from perdure.run import Evaluation, run
from perdure.runs import evaluate_run, learn_more
from perdure.stream import Task, TaskStream
from perdure.task_id import Statistics, TaskPosterior
from perdure.task_vector import LowRank, TaskVector

__all__ = [
    "Adapter",
    "Alignment",
    "Backbone",
    "BackboneError",
    "Combined",
    "DataError",
    "Evaluation",
    "FetchError",
    "Gaussians",
    "InputError",
    "LowRank",
    "Method",
    "Model",
    "PerdureError",
    "PerdureWarning",
    "Prediction",
    "Recipe",
    "Rule",
    "Run",
    "RunError",
    "Statistics",
    "Task",
    "TaskPosterior",
    "TaskStream",
    "TaskVector",
    "Training",
    "TrainingError",
    "UnknownName",
    "align",
    "combine",
    "evaluate_run",
    "find",
    "learn",
    "learn_more",
    "names",
    "read_tasks",
    "run",
    "task_vectors",
]
