"""A run's tasks, given back to a backbone."""

from collections.abc import Sequence

from perdure import adapters
from perdure.backbone import Backbone
from perdure.errors import RunError
from perdure.heads import SEED
from perdure.results import Run
from perdure.stream import TaskStream
from perdure.task_folder import Learned


def restore(results: Run, backbone: Backbone, stream: TaskStream | None = None) -> list[Learned]:
    """Give the backbone the heads of a run's tasks and the last task's adapter, as they were left; return the tasks.

    Raises
    ------
    RunError
        The `stream` does not begin with the tasks that the run has learned, or their examples are others now.
    """
    learned = [results.load_task(name) for name in results.tasks]
    for task in learned:
        check_fits(backbone, task)
    if stream:
        check_same(learned, stream)
    adapters.detach(backbone.model)  # another run may have used this backbone before
    give_heads(backbone, learned)
    if learned:
        adapters.attach(backbone.model, learned[-1].adapter.config)
        adapters.write(backbone.model, learned[-1].adapter.parameters)
    return learned


def check_same(learned: Sequence[Learned], stream: TaskStream) -> None:
    """Raise `RunError` if a stream does not begin with these tasks, or their examples are others."""
    names = [task.name for task in learned]
    if stream.names[: len(names)] != names:
        raise RunError(
            f"The run has learned the tasks {names}, but the stream has {stream.names}. Keep their order, and put new "
            "ones behind them."
        )
    for old, task in zip(learned, stream, strict=False):
        if old.classes != task.classes or not task.has_digests(old.digests):
            raise RunError(
                f"The examples of task `{task.name}` are not those that the run learned: the data has changed, and "
                "what is test now may have been trained on. Put the old data back, or start a new run."
            )


def give_heads(backbone: Backbone, learned: Sequence[Learned]) -> None:
    """The heads as they were after the last of these tasks; a later task may have trained an earlier one's head on."""
    names = {task.name for task in learned}
    backbone.heads.clear()  # there may be heads of tasks to come, for they have been measured
    for task in learned:
        for name, head in task.heads.items():
            if name not in names:  # of a task that was forgotten
                continue
            backbone.put_head(name, head)


def check_fits(backbone: Backbone, task: Learned) -> None:
    """Whether a task was learned on such a backbone.

    Raises
    ------
    RunError
        A head is of another width.
    BackboneError
        An adapter is for other layers.
    """
    adapters.check_fits(backbone.model, task.adapter)
    for name, head in task.heads.items():
        if SEED not in head and head["weight"].shape[1] != backbone.width:
            raise RunError(
                f"The head of `{name}` in task `{task.name}` reads {head['weight'].shape[1]} features, but "
                f"`{backbone.source}` gives {backbone.width}. Is it the model that the run began with?"
            )
