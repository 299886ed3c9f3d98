"""The recipe of a run that learns the tasks of one more table."""

import os
from collections.abc import Mapping, Sequence

from perdure.errors import InputError
from perdure.runs import backbones
from perdure.runs.layout import Settings, forgotten
from perdure.runs.recipe import Recipe
from perdure.runs.state import RunState
from perdure.runs.streams import own_stream
from perdure.settings import named

Entry = Mapping[str, object]
"""An entry of a recipe's stream: the arguments of `read_tasks`, or a `benchmark`."""


def backbone_or_usual(backbone: str | None) -> str:
    """Return the requested backbone, by default `minilm`."""
    # Not a test for truth: an empty name is an error, such as an unset variable in a script.
    return "minilm" if backbone is None else backbone


def with_entry(
    state: RunState, entry: Entry, begun: bool, backbone: str | None, seed: int | None
) -> Settings:
    """Return a run's recipe with one more entry in its stream.

    Parameters
    ----------
    begun
        True if the run has learned at least a part of a task.
    backbone, seed
        The requested values, which are ignored if the run has begun.
    """
    before = state.recipe
    gone = forgotten(before)
    stream = before["stream"]
    is_own_data = isinstance(stream, list)
    if not begun and is_own_data and len(stream) <= 1 and not gone:
        # The first attempt failed, perhaps because of a typing error: this entry replaces it.
        return {
            **before,
            "stream": [dict(entry)],
            "backbone": backbone_or_usual(backbone),
            "seed": seed or 0,
        }
    values = {**before, "stream": _entries(stream, entry, gone, state.tasks)}
    if not is_own_data:
        # A benchmark defines its scenario, which would be lost in a list of entries.
        whole = Recipe.parse({**before, "forgotten": []})
        values["scenario"] = whole.make_stream(state).scenario
    if gone:
        # Tasks that are learned again no longer count as forgotten.
        again = own_stream([entry]).names
        values["forgotten"] = [name for name in gone if name not in again]
    if not begun:
        values |= {"backbone": backbone} if backbone else {}
        values |= {"seed": seed} if seed is not None else {}
    return values


def check_unchanged(
    before: Settings, backbone: str | None, seed: int | None, settings: Sequence[str]
) -> None:
    """Check that the given settings can still change in a run that has begun.

    Raises
    ------
    InputError
        A setting that is fixed once a run has begun would change.
    """
    fixed = {
        "--backbone": (backbone, backbones.name_of(before["backbone"])),
        "--seed": (seed, before["seed"]),
    }
    for option, (given, used) in fixed.items():
        if given not in (None, used):
            raise InputError(
                f"The run began with `{option} {used}`; it cannot continue with `{given}`."
            )
    for setting in settings:
        # The folder has either one head for each task or one for all.
        if setting.startswith("training.heads"):
            raise InputError(f"`--set {setting}`: the heads cannot change once a run has begun.")
        if not setting.startswith(("training.", "evaluation.")):
            raise InputError(
                f"`--set {setting}`: "
                "once a run has begun, only `training` and `evaluation` can change."
            )


def _entries(
    stream: object, entry: Entry, gone: Sequence[str], taken: Sequence[str]
) -> list[Settings]:
    """Return a run's stream as a list with one more entry, unless it already has that entry.

    Parameters
    ----------
    gone
        The tasks that were forgotten. Those in the new entry are learned again, after the others.
    taken
        The names of the tasks that the run has learned.
    """
    if not isinstance(stream, list):
        name, options = named(stream, "stream")
        stream = [{"benchmark": name, **options}]
    plain = []
    for old in stream:
        plain.append({key: value for key, value in old.items() if key != "without"})
    new = own_stream([entry]).names
    again = [name for name in new if name in gone]
    if again:
        return _with_again(stream, plain, entry, new, again)
    # An earlier attempt added the entry, and stopped before all of its tasks were finished.
    if _spelled_out(entry) in [_spelled_out(old) for old in plain]:
        return stream
    _check_names(new, taken)
    return [*stream, dict(entry)]


def _with_again(
    stream: list[Settings],
    plain: list[Settings],
    entry: Entry,
    new: Sequence[str],
    again: Sequence[str],
) -> list[Settings]:
    """Return a stream in which the tasks `again` are read from the new entry, at the end.

    Parameters
    ----------
    plain
        The entries of the stream, without their `without` keys.
    new
        The names of all tasks in the new entry.
    """
    before = []
    for old in stream:
        may_have_several = "benchmark" in old or old.get("task")
        before.append(_without(old, again) if may_have_several else old)
    added = dict(entry)
    if added in plain:
        # The old entry still provides the other tasks of the table.
        others = [name for name in new if name not in again]
        added |= {"without": others} if others else {}
    return [*before, added]


def _spelled_out(entry: Entry) -> Settings:
    """Return an entry in canonical form: with absolute paths and all defaults."""
    data = entry.get("data")
    if isinstance(data, str):
        data = os.path.abspath(data)
    elif isinstance(data, Mapping):
        data = {split: os.path.abspath(str(path)) for split, path in data.items()}
    usual = {"label": "label", "score": "accuracy", "encoding": "utf-8"}
    return {**usual, **entry, "data": data}


def _check_names(new: Sequence[str], taken: Sequence[str]) -> None:
    for name in new:
        if name in taken:
            raise InputError(
                f"The run already has a task `{name}`, which it learned from another table or "
                "folder. Give the new task another name, with `--task`."
            )


def _without(entry: Settings, names: Sequence[str]) -> Settings:
    """Return an entry from which the given tasks are not read."""
    return entry | {"without": list(dict.fromkeys([*entry.get("without", []), *names]))}
