"""A sentence about what was run."""

from collections.abc import Sequence

from perdure.report.folder import Files
from perdure.report.plain import Record


def sentence(files: Files) -> str:
    """Describe what was run: tasks, backbone, method, rule and seed."""
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
    # Own tables are a list; their scenario then stands beside them, and not in the stream.
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
    """Name the tasks in brackets, and say that their order is that of learning."""
    names = [task["name"] for task in tasks]
    listed = ", ".join(names)
    # A sentence with 300 names is none; the last one says where the run has come to.
    if len(names) > 20:
        listed = f"{', '.join(names[:18])} … {names[-1]}"
    order = "learned in this order" if len(names) > 1 else "learned"
    return f"({listed or 'none finished'}), {order}"


def _name(section: object) -> str:
    """Return the name that a section of the recipe is given by: the section itself, or its
    `name`.
    """
    if isinstance(section, dict):
        section = section.get("name") or section.get("model")
    return "an unnamed one" if section is None else str(section)


def _text(scale: object) -> str:
    """Return a scale, or those of tasks and their parts, as text."""
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
