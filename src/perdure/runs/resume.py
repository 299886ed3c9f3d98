"""A run's tasks, given back to a backbone."""

from collections.abc import Sequence

from perdure.data.task import TaskStream
from perdure.errors import RunError
from perdure.models import adapters
from perdure.models.backbone import Backbone
from perdure.models.heads import SEED
from perdure.runs import layout
from perdure.runs.folder import Run
from perdure.runs.layout import UNFINISHED
from perdure.runs.past import changed
from perdure.runs.task_folder import Learned
from perdure.storage import files


def restore(results: Run, backbone: Backbone, stream: TaskStream | None = None) -> list[Learned]:
    """Give the backbone the heads of a run's tasks and the last task's adapter, as they were left; return the tasks.

    Raises
    ------
    RunError
        The `stream` does not begin with the tasks that the run has learned, or their examples are others now; or the
        backbone is another model than that of the run.
    """
    check_model(results, backbone)
    learned = [results.load_task(name) for name in results.tasks]
    for task in learned:
        check_fits(backbone, task)
    if stream:
        check_same(learned, stream)
    if results.shares_head and len({task.classes for task in learned}) > 1:
        raise RunError(
            f"`{results.folder / 'recipe.yaml'}` says that the tasks share a head, but they have different classes. "
            "It is damaged or was changed."
        )
    adapters.detach(backbone.model)  # another run may have used this backbone before
    give_heads(backbone, learned, shared=results.shares_head)
    if learned:
        adapters.attach(backbone.model, learned[-1].adapter.config)
        adapters.write(backbone.model, learned[-1].adapter.parameters)
    return learned


def keep_model(results: Run, backbone: Backbone) -> None:
    """Keep the hashes of the backbone's files with a run that has learned nothing on a backbone yet."""
    content = {"source": backbone.source, "revision": backbone.revision, "files": backbone.hashes}
    if backbone.files and not _stands_on_one(results):
        files.write(results.folder / layout.BACKBONE, files.to_json(content))


def _stands_on_one(results: Run) -> bool:
    return bool(results.tasks) or layout.is_there(results.folder / UNFINISHED)


def check_model(results: Run, backbone: Backbone) -> None:
    """Compare the backbone's files with those that the run began with, if it kept their hashes.

    Raises
    ------
    RunError
        They differ, so that what was learned does not fit them.
    """
    kept = layout.backbone(results.folder)
    if not kept or not backbone.files or not _stands_on_one(results):
        return
    now = backbone.hashes
    differing = sorted(name for name in {*kept, *now} if kept.get(name) != now.get(name))
    if not differing:
        return
    names = ", ".join(f"`{name}`" for name in differing[:3]) + (", …" if len(differing) > 3 else "")
    verb = "differs" if len(differing) == 1 else "differ"
    raise RunError(
        f"`{backbone.source}` is not the model that the run `{results.folder}` began with: {names} {verb}. Put the "
        f"files of before back, or start a new run. (If you know that both answer alike, remove "
        f"`{results.folder / layout.BACKBONE}`: then they are no longer compared.)"
    )


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
            raise RunError(f"{changed(task.name)} Put the old data back, or start a new run.")


def give_heads(backbone: Backbone, learned: Sequence[Learned], *, shared: bool) -> None:
    """The heads as they were after the last of these tasks; a later task may have trained an earlier one's head on.

    A `shared` head is the last task's, and the other tasks' too.
    """
    names = {task.name for task in learned}
    for name in backbone.heads:  # there may be some of tasks to come, for they have been measured
        backbone.close(name)
    if shared and learned:
        backbone.put(learned[0].name, learned[-1].heads[learned[-1].name])
        for task in learned[1:]:
            backbone.share(task.name)
        return
    for task in learned:
        for name, head in task.heads.items():
            if name not in names:  # of a task that was forgotten
                continue
            backbone.put(name, head)


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
