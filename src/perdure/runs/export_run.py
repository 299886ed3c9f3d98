"""Export a run: check what is asked for, compute and measure the heads, and write the folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from perdure.data.task import TaskStream
from perdure.errors import InputError, RunError
from perdure.evaluation.system import System
from perdure.models import placement
from perdure.runs import backbones
from perdure.runs.export import (
    Export,
    Form,
    check_adapter,
    check_exportable,
    write_adapter,
    write_model,
)
from perdure.runs.export_card import Exported
from perdure.runs.export_heads import Heads, computed_heads, measured, usual_heads
from perdure.runs.language_card import asking
from perdure.runs.state import RunState
from perdure.storage import staging


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request to export a run. The fields are the arguments of `Model.export`."""

    output: Path
    form: Form = "model"
    heads: Heads | None = None
    rank: int | None = None
    pad_rank: bool = False
    stream: TaskStream | None = None

    def check(self) -> None:
        """Raise `InputError` if an option does not suit the form."""
        if self.form == "model" and (self.rank is not None or self.pad_rank):
            raise InputError("`--rank` and `--pad-rank` are for `--as adapter`.")
        if self.form == "adapter" and self.heads:
            raise InputError("`--heads` is for `--as model`: an adapter has no heads.")


def exported(
    system: System,
    state: RunState,
    label: str,
    request: Request,
    *,
    check: Callable[[], None],
) -> Exported:
    """Export a run as `Model.export` does, and return the description in the model card.

    Parameters
    ----------
    label
        The name of the rule in the scores of the run.
    check
        Called before the finished folder is moved into place; it raises an error if a
        task has been forgotten in the meantime.
    """
    request.check()
    backbone = system.backbone
    if placement.is_sharded(backbone.model):
        raise RunError(
            "The model is sharded between several processes, and only a whole one can be exported. "
            "Export it in a single process: `perdure export` without a launcher."
        )
    # Checked here, before anything is computed; `new_folder` checks again.
    staging.check_free(request.output)
    backbones.check_export(state.recipe["backbone"])
    check_exportable(system.rule, request.form, backbone.settings.get("dtype"))
    if request.form == "adapter":
        check_adapter(backbone)
    kind = request.heads or usual_heads(system, state.recipe)
    heads = computed_heads(system, kind)
    about = Exported(
        name=request.output.name,
        base=backbone.published,
        kind=backbone.kind,
        stock=backbone.settings.get("pooling") != "mean",
        method=state.recipe["method"]["name"],
        rule=label,
        tasks=system.classes,
        heads=kind,
        measured=measured(system, state, label, heads, request.stream),
        asking=asking(backbone),
    )
    export = Export(
        system=system,
        combined=system.combined,
        output=request.output,
        about=about,
        heads=heads,
        check=check,
    )
    if request.form == "adapter":
        return write_adapter(export, rank=request.rank, pad_rank=request.pad_rank)
    return write_model(export)
