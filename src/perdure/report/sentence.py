"""A one-sentence description of a run."""

from collections.abc import Sequence

from perdure.report.folder import Files
from perdure.report.plain import Record


def sentence(files: Files) -> str:
    """Describe a run in one sentence, with its tasks, backbone, method, rule and seed."""
    recipe = files.recipe
    rule = files.combined.get("name") or _name(recipe.get("rule"))
    return " ".join(
        [
            _described(recipe, len(files.tasks)),
            f"{_listed(files.tasks)} on {_name(recipe.get('backbone'))}",
            f"by method {_name(recipe.get('method'))},",
            f"combined by rule {rule}",
            f"{_scale(files.combined)}with seed {recipe.get('seed', 'unknown')}.",
        ]
    )


def _described(recipe: Record, count: int) -> str:
    """Describe the number of tasks, their kind, and where they come from."""
    stream = recipe.get("stream")
    scenario = None
    # The user's own tables are a list, and their scenario is next to the stream, not inside it.
    if isinstance(stream, list):
        source = "own data"
        scenario = recipe.get("scenario")
    else:
        source = _name(stream)
        if isinstance(stream, dict):
            scenario = stream.get("scenario")
    kind = f"{scenario}-incremental " if scenario else ""
    plural = "" if count == 1 else "s"
    return f"{count} {kind}task{plural} of {source}"


def _listed(tasks: Sequence[Record]) -> str:
    """List the tasks in parentheses, and say that they were learned in this order."""
    names = [task["name"] for task in tasks]
    listed = ", ".join(names)
    # 300 names are too many for a sentence; the last one shows how far the run has come.
    if len(names) > 20:
        listed = f"{', '.join(names[:18])} … {names[-1]}"
    order = "learned in this order" if len(names) > 1 else "learned"
    return f"({listed or 'none finished'}), {order}"


def _name(section: object) -> str:
    """Return the name in a section of the recipe: the section itself, or one of its entries."""
    if isinstance(section, dict):
        section = section.get("name") or section.get("model") or section.get("network")
    return "an unnamed one" if section is None else str(section)


def _text(scale: object) -> str:
    """Format a scale, or the scales of tasks and of their parts, as text."""
    if isinstance(scale, dict):
        texts = [f"{task} {_text(value)}" for task, value in scale.items()]
        return ", ".join(texts)
    if isinstance(scale, list):
        texts = [_text(value) for value in scale]
        return "/".join(texts)
    if isinstance(scale, float):
        return f"{scale:.3g}"
    return str(scale)


def _scale(combined: Record) -> str:
    scale = combined.get("options", {}).get("scale")
    if scale is None:
        return ""
    searched = ", found by search on validation data" if combined.get("candidates") else ""
    return f"(λ = {_text(scale)}{searched}) "
