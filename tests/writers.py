"""Every command that writes, on little: `python writers.py PLACE WAY COMMAND,… SHARE SEED`.

A command is done in a fork of a process that has imported everything,
on a copy of what it begins with, below `work`.

    kills it is killed at each operation on a file that changes something, and then given again
    faults each operation on a file fails once, as a disk or a system fails, and the command is
    given again links a link to what lies outside is put at each place that it writes

A SHARE of all these are tried, drawn by SEED. Prints JSON: how many, and what was wrong.
"""

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["COLUMNS"] = "200"

import conftest  # noqa: F401  # types are checked, and nobody waits for the disk
import everything
from faults import KILLED, KILLED_INSIDE, Faults, watching
from peft_folders import adapter, base
from tables import write

from perdure.checks.models import WORDS

SECONDS = 600  # of a machine that others use, too
ERRORS = ("full", "broken", "denied", "torn")
PARTIAL = "perdure-partial"
TINY = ("--set", "training.epochs=1", "--set", "training.batch_size=8")


@dataclass(frozen=True)
class Command:
    """What is given to the command line, and what it begins with: a run of so many tasks,
    or nothing.

    `loose` are files of the result that tell how often, or how long, something was done.
    """

    arguments: tuple[str, ...]
    tasks: int = 0
    loose: tuple[str, ...] = ()


RUN, OUT = "work/run", "work/out"
MEASURES = ("run/report.html", "run/events.jsonl")
COMMANDS = {
    "run": Command(("run", "recipe.yaml", "-o", RUN, "-q"), 0, ("run/report.html",)),
    "learn": Command(("learn", RUN, "--data", "colour.csv", "-q"), 1, ("run/report.html",)),
    "forget": Command(("forget", RUN, "fruit"), 2),
    "evaluate": Command(("evaluate", RUN, "--rule", "average", "--last"), 2, MEASURES),
    "report": Command(("report", RUN), 2),
    "diagnose": Command(
        ("diagnose", RUN, "--only", "interference", "--only", "posterior", "--examples", "4"), 2
    ),
    "tune": Command(
        ("tune", "recipe.yaml", "-o", OUT, "--trials", "2", "--tasks", "1", "-q"),
        0,
        ("out/trials.jsonl",),
    ),
    "merge": Command(("merge", "llama", "one", "--rule", "sum", "-o", OUT, "-q")),
    "merge-adapter": Command(
        ("merge", "llama", "one", "--rule", "sum", "--as", "adapter", "-o", OUT, "-q")
    ),
    "merge-run": Command(("merge", RUN, "--rule", "average", "-o", OUT), 2, MEASURES),
    "export": Command(("export", RUN, "-o", OUT), 2),
    "predict": Command(("predict", RUN, "texts.csv", "-o", "work/out.csv"), 2),
}


def prepare(place: Path, backbone: Path) -> None:
    """Make what the commands begin with."""
    from perdure import Recipe

    for number, name in enumerate(("fruit", "colour")):
        rows = [
            (f"{WORDS[i]} {WORDS[20 + number]} {WORDS[30 + i % 2]}", "ab"[i % 2]) for i in range(16)
        ]
        write(place / f"{name}.csv", rows)
    write(place / "texts.csv", [(word,) for word in WORDS[:3]], ("text",))
    recipe = {
        "stream": [{"data": "fruit.csv"}, {"data": "colour.csv"}],
        "backbone": {"model": str(backbone), "pooling": "mean", "max_length": 8},
        "method": {"name": "isolated", "rank": 1},
        "training": {"epochs": 1, "batch_size": 8, "checkpoint_steps": 1},
    }
    (place / "recipe.yaml").write_text(json.dumps(recipe))
    with contextlib.chdir(place):
        for tasks in (1, 2):
            Recipe.parse(recipe | {"stream": recipe["stream"][:tasks]}).run(f"start-{tasks}")
        folder = base("llama", place, max_shard_size="8KB")
        adapter(folder, place / "one", seed=1)
    (place / "outside").mkdir()


# -- one process


@dataclass(frozen=True)
class Ended:
    """How a process ended: its status (negative: the signal), what it said,
    and the operations that it did.
    """

    status: int
    said: str
    done: list[tuple[str, list[str]]]


def ended(
    arguments: tuple[str, ...], faults: Faults, before: Callable[[], None] = lambda: None
) -> Ended:
    """Do a command in a fork of this process, with a fault."""
    Path("said").write_text("")
    child = os.fork()
    if not child:
        signal.alarm(SECONDS)
        _do(arguments, faults, before)
    _, status = os.waitpid(child, 0)
    done = json.loads(Path("done").read_text()) if Path("done").exists() else []
    return Ended(os.waitstatus_to_exitcode(status), Path("said").read_text(errors="replace"), done)


def _do(arguments: tuple[str, ...], faults: Faults, before: Callable[[], None]) -> None:
    from perdure.cli import app

    output = os.open("said", os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["perdure", *arguments]
    status = 0
    try:
        before()
        with watching(faults):
            app.main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        status = 70
    sys.stdout.flush()
    sys.stderr.flush()
    Path("done").write_text(json.dumps(faults.done))
    os._exit(status)


# -- what there is


def fresh(command: Command) -> None:
    """Put below `work` what a command begins with."""
    shutil.rmtree("work", ignore_errors=True)
    os.mkdir("work")
    if command.tasks:
        shutil.copytree(f"start-{command.tasks}", RUN, symlinks=True)


def result(command: Command) -> dict[str, Any]:
    """All that is below `work`, as far as it does not tell of times."""
    found: dict[str, Any] = {}
    for path in sorted(Path("work").rglob("*")):
        name = str(path.relative_to("work"))
        found[name] = None if path.is_dir() else _content(path)
        if name in command.loose or path.name == "environment.json":
            found[name] = "there"
    return found


def _content(path: Path) -> Any:
    if path.name == "events.jsonl":
        from perdure.runs import layout  # which leaves out what a kill has left of a line

        return [
            {key: value for key, value in line.items() if key != "seconds"}
            for line in layout.events(path.parent)
        ]
    if path.name == "report.html":
        return path.read_text().endswith("</html>")
    return path.read_bytes()


def partial(expected: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """The outputs that are neither what they were, nor what they are to be:
    only what counts for nothing may be.
    """
    outputs = ("out.csv", "out", "run/report.html", "run/diagnostics.json", "out/tuned.yaml")
    wrong = []
    for name in outputs:
        path = Path("work") / name
        if not path.exists() or (name == "out" and "out/tuned.yaml" in expected):
            continue
        if path.is_dir():
            inside = {str(one.relative_to("work")) for one in path.rglob("*")}
            if inside and inside != {one for one in expected if one.startswith("out/")}:
                wrong.append(f"`{name}` holds {sorted(inside)} only")
        elif _content(path) not in (expected.get(name), before.get(name), True):
            wrong.append(f"`{name}` is partial")
    return wrong


def settled(command: Command, expected: dict[str, Any], last: Ended) -> list[str]:
    """What is wrong after a command was given again: it has to come to the result,
    with nothing left over.
    """
    found = result(command)
    there_already = "already" in last.said and last.status == 1
    if last.status and not there_already:
        return [f"given again it ends with {last.status}: {last.said[-600:]}"]
    differing = [
        name for name in sorted({*found, *expected}) if found.get(name, 0) != expected.get(name, 0)
    ]
    if there_already and differing == ["run/lock.json"]:
        # The system refused to remove it, and nothing was left to do the second time. It counts
        # for nothing (docs/run-folder.md), and the next writer of the run takes it over.
        return []
    return [f"given again it is something else: {differing[:5]}"] if differing else []


# -- the three ways


def kills(command: Command, random: Random, share: float) -> Iterator[list[str]]:
    """Kill it at each operation that changes something, and inside each that writes."""
    before, expected, done = _whole(command)
    cases = [(number, KILLED) for number, (_, kinds) in enumerate(done) if "full" in kinds]
    cases += [(number, KILLED_INSIDE) for number, (_, kinds) in enumerate(done) if "torn" in kinds]
    for number, kind in _drawn(cases, random, share):
        fresh(command)
        first = ended(command.arguments, Faults(Path("work"), number, kind))
        wrong = partial(expected, before)
        if first.status not in (0, -signal.SIGKILL):
            wrong.append(f"it ends with {first.status}: {first.said[-300:]}")
        wrong += settled(command, expected, ended(command.arguments, Faults(Path("work"))))
        yield [f"{kind} at {number}, {done[number][0]}: {text}" for text in wrong]


def faults(command: Command, random: Random, share: float) -> Iterator[list[str]]:
    """Let each operation fail once in each way."""
    before, expected, done = _whole(command)
    cases = [
        (number, kind) for number in _telling(done) for kind in done[number][1] if kind in ERRORS
    ]
    for number, kind in _drawn(cases, random, share):
        fresh(command)
        first = ended(command.arguments, Faults(Path("work"), number, kind))
        wrong = partial(expected, before) + _sentence(first)
        if first.status or result(command) != expected:
            wrong += settled(command, expected, ended(command.arguments, Faults(Path("work"))))
        yield [f"{kind} at {number}, {done[number][0]}: {text}" for text in wrong]


def _telling(done: list[tuple[str, list[str]]]) -> list[int]:
    """The operations that change something, and of those that read the same thing the first and the
    last.
    """
    numbers: dict[str, list[int]] = {}
    for number, (operation, kinds) in enumerate(done):
        same = operation if "full" not in kinds else f"{number}"
        numbers.setdefault(re.sub(r"[0-9a-f.]*\.perdure-partial", "partial", same), []).append(
            number
        )
    return sorted({number for same in numbers.values() for number in (same[0], same[-1])})


def _sentence(first: Ended) -> list[str]:
    """What is wrong with what a command said when something failed: a sentence names the file."""
    said = first.said.strip()
    named = re.search(r"`[^`]*work[^`]*`", said)
    if first.status == 0 or (
        first.status == 1 and named and "Traceback" not in said and "None" not in said
    ):
        return []
    return [f"it ends with {first.status} and says {said[-600:]!r}"]


def links(command: Command, random: Random, share: float) -> Iterator[list[str]]:
    """Put a link at each place that it writes, and at names that an earlier version gave what it
    was writing.
    """
    fresh(command)
    before = {str(path.relative_to("work")) for path in Path("work").rglob("*")}
    _, expected, done = _whole(command)
    touched = {operation.partition(" ")[2] for operation, kinds in done if "full" in kinds}
    places = sorted({*touched, *before, *expected, "run/lock.json", "out/lock.json"} - {""})
    places = [place for place in places if PARTIAL not in place]
    names = [f"{place}/{name}" for place in ("run", "run/tasks", "out", ".") for name in FORESEEN]
    cases = [(place, kind) for place in places + names for kind in LINKS]
    goes_on_in = "out" if command is COMMANDS["tune"] else "run"
    if f"work/{goes_on_in}" in command.arguments:  # the user named it: it may be a link itself
        cases = [
            case for case in cases if case not in ((goes_on_in, "folder"), (goes_on_in, "moved"))
        ]
    for place, kind in _drawn(cases, random, share):
        fresh(command)
        outside = _outside()
        first = ended(
            command.arguments, Faults(Path("work")), functools.partial(_plant, place, kind)
        )
        wrong = [] if _snapshot() == outside else ["what lies outside has changed"]
        if first.status not in (0, 1, 2) or "Traceback" in first.said:
            wrong.append(f"it ends with {first.status}: {first.said[-600:]}")
        yield [f"a {kind} link at {place}: {text}" for text in wrong]


LINKS = ("file", "folder", "moved", "dangling", "hard")
FORESEEN = (
    ".report.html.{pid}.perdure-partial",
    ".recipe.yaml.{pid}.perdure-partial",
    ".out.{pid}.perdure-partial",
    ".00-fruit.{pid}.perdure-partial",
)


def _outside() -> dict[str, Any]:
    shutil.rmtree("outside")
    shutil.copytree("start-2", "outside/other")
    Path("outside/file").write_text("mine")
    return _snapshot()


def _snapshot() -> dict[str, Any]:
    """All that lies outside, but for what `_plant` moved there."""
    paths = [path for path in sorted(Path("outside").rglob("*")) if "moved" not in path.parts]
    found: dict[str, Any] = {}
    for path in paths:
        status = path.lstat()
        found[str(path)] = (
            status.st_mode,
            status.st_mtime_ns,
            path.read_bytes() if path.is_file() else None,
        )
    for path in sorted(
        Path("outside/moved").rglob("*")
    ):  # its bytes are those of before: see `_plant`
        known = Path("kept") / path.relative_to("outside/moved")
        if not known.exists() or (path.is_file() and path.read_bytes() != known.read_bytes()):
            found[str(path)] = "changed"
    return found


def _plant(place: str, kind: str) -> None:
    """Put a link below `work`; `moved`: what is there lies outside from now on."""
    path = Path("work") / place.format(pid=os.getpid())
    outside = Path("outside").absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree("kept", ignore_errors=True)
    if kind == "moved":
        moved = outside / "moved" / path.name
        moved.parent.mkdir()
        if path.exists():
            shutil.move(path, moved)
        shutil.copytree(moved.parent, "kept", symlinks=True)
        path.symlink_to(moved)
        return
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "hard":
        os.link(outside / "file", path)
    else:
        path.symlink_to(outside / {"file": "file", "folder": "other", "dangling": "nothing"}[kind])


def _whole(command: Command) -> tuple[dict[str, Any], dict[str, Any], list[tuple[str, list[str]]]]:
    """What is there before a command and after it, and the operations that it does."""
    fresh(command)
    before = result(command)
    whole = ended(command.arguments, Faults(Path("work")))
    assert whole.status == 0, whole.said
    expected = result(command)
    assert not [name for name in expected if PARTIAL in name or "lock.json" in name], sorted(
        expected
    )
    return before, expected, whole.done


def _drawn(cases: list[Any], random: Random, share: float) -> list[Any]:
    return cases if share >= 1 else random.sample(cases, max(1, round(share * len(cases))))


WAYS = {"kills": kills, "faults": faults, "links": links}


def main() -> None:
    place, way, names, share, seed = sys.argv[1:]
    warnings.simplefilter("ignore")
    os.fsync = lambda number: None  # counted by `watching`, but not waited for
    os.chdir(place)
    everything.import_it()

    tried, wrong = {}, []
    for name in names.split(","):
        found = list(WAYS[way](COMMANDS[name], Random(f"{name} {seed}"), float(share)))
        tried[name] = len(found)
        wrong += [f"{name}: {text}" for texts in found for text in texts]
    print(json.dumps({"tried": tried, "wrong": wrong}))


if __name__ == "__main__":
    main()
