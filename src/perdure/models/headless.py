"""Backbones without heads: all tasks share the model's output, and nothing belongs to one task."""

import contextlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from perdure.data.task import Task
from perdure.models.backbone import Backbone
from perdure.models.model_files import ModelFiles


class Headless(Backbone):
    """A backbone in which the module that belongs to a task is empty."""

    has_heads = False

    def __init__(self, model: nn.Module, processor: Any, *, source: str, files: ModelFiles | None):
        super().__init__(model, processor, source=source, files=files)
        self._nothing = nn.Module()

    @property
    def heads(self) -> list[str]:
        return []

    def open(self, task: Task) -> None:
        pass

    def share(self, task: str) -> None:
        pass

    def own(self, task: str) -> nn.Module:
        return self._nothing

    def put(self, task: str, state: Mapping[str, Tensor]) -> None:
        pass

    def close(self, task: str) -> None:
        pass

    def keeping(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()
