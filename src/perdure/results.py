"""The run folder: write it, read it. Everything after training needs nothing else.

    recipe.yaml · environment.json                    what was run, and on what
    tasks/00-name/                                    one folder per task, complete or absent
        adapter/            a PEFT folder that stock peft loads
        start.safetensors   the module before the task
        head.safetensors · statistics.safetensors · method.safetensors · gaussians.safetensors (with alignment)
        task.json           name, classes, digests of the examples, the method's JSON state
        manifest.json       size and SHA-256 of each file
    combined.json                                     the rule as it was last applied, with the scale that was found
    scores.csv · events.jsonl                         measured values; losses, times and sizes

Every file is written under a temporary name, synced and renamed. safetensors and JSON only: nothing is unpickled.
"""

import csv
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float
from numpy import ndarray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from perdure import adapters
from perdure.adapters import Adapter
from perdure.alignment import Gaussians
from perdure.errors import RunError
from perdure.task_id import Statistics

GAUSSIANS = "gaussians.safetensors"
COLUMNS = ("step", "task", "scenario", "task_id", "rule", "metric", "value")


@dataclass(frozen=True)
class Learned:
    """All that is kept of one task."""

    classes: tuple[str, ...]
    adapter: Adapter
    heads: dict[str, dict[str, Tensor]]
    """By task: those that this task's training changed, which is its own and perhaps earlier ones."""
    statistics: Statistics
    state: dict[str, Any]
    digests: dict[str, str]
    """The SHA-256 of each split."""
    gaussians: Gaussians | None = None
    """Of the combined model's features when it had been learned; only where heads are aligned."""

    @property
    def name(self) -> str:
        return self.adapter.name


class Run:
    """A run folder.

    Raises
    ------
    RunError
        The folder is no run, or is damaged.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / "recipe.yaml").is_file():
            raise RunError(
                f"`{folder}` is not a run: it has no `recipe.yaml`. Give the folder that `perdure run` wrote."
            )

    @classmethod
    def create(cls, folder: str | Path, recipe: Mapping[str, Any], environment: Mapping[str, Any]) -> "Run":
        """Make a new run folder.

        Raises
        ------
        RunError
            There is something in the folder already: nothing is ever overwritten.
        """
        folder = check_empty(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / "environment.json", json.dumps(environment, indent=2))
        write(folder / "recipe.yaml", dump_yaml(recipe))
        return cls(folder)

    # -- the recipe

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe."""
        return yaml.safe_load((self.folder / "recipe.yaml").read_text(encoding="utf-8"))

    @recipe.setter
    def recipe(self, value: Mapping[str, Any]) -> None:
        write(self.folder / "recipe.yaml", dump_yaml(value))

    # -- tasks

    def task_folders(self) -> list[Path]:
        """The folders of the tasks that are complete, in the order in which they were learned."""
        folders = [path.parent for path in self.folder.glob("tasks/[0-9]*-*/manifest.json")]
        return sorted(folders, key=lambda folder: int(folder.name.split("-", 1)[0]))

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks learned."""
        return [folder.name.split("-", 1)[1] for folder in self.task_folders()]

    def save_task(self, learned: Learned, *, base: str, head: tuple[str, nn.Linear] | None) -> Path:
        """Write a task's folder: all of it, or nothing."""
        place = self.folder / "tasks" / f"{len(self.tasks):02d}-{learned.name}"
        place.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".") as temporary:
            folder = Path(temporary) / place.name
            adapters.save(folder / "adapter", learned.adapter, base=base, head=head)
            tensors = {key: value for key, value in learned.state.items() if isinstance(value, Tensor)}
            heads = {f"{task}/{key}": value for task, head in learned.heads.items() for key, value in head.items()}
            save_file(heads, folder / "head.safetensors")
            save_file(learned.statistics.tensors(), folder / "statistics.safetensors")
            if learned.gaussians:
                save_file(learned.gaussians.tensors(), folder / GAUSSIANS)
            save_file(tensors, folder / "method.safetensors")
            plain = {key: value for key, value in learned.state.items() if key not in tensors}
            about = {"name": learned.name, "classes": list(learned.classes), "digests": learned.digests, "state": plain}
            (folder / "task.json").write_text(json.dumps(about, indent=2), encoding="utf-8")
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            for path in files:
                sync(path)
            manifest = {str(path.relative_to(folder)): _fingerprint(path) for path in files}
            write(folder / "manifest.json", json.dumps(manifest, indent=2))
            if place.exists():  # without a manifest: the remains of a write that never ended
                shutil.rmtree(place)
            os.replace(folder, place)
        return place

    def load_task(self, name: str) -> Learned:
        """Read a task's folder.

        Raises
        ------
        RunError
            A file is missing or is not what was written.
        """
        folder = self.task_folders()[self.tasks.index(name)]
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        for file, expected in manifest.items():
            if not (folder / file).is_file() or _fingerprint(folder / file) != expected:
                raise RunError(f"`{folder / file}` is not what was written: it is damaged or was changed.")
        about = json.loads((folder / "task.json").read_text(encoding="utf-8"))
        heads: dict[str, dict[str, Tensor]] = {}
        for key, value in load_file(folder / "head.safetensors").items():
            task, _, part = key.partition("/")
            heads.setdefault(task, {})[part] = value
        return Learned(
            classes=tuple(about["classes"]),
            adapter=adapters.load(folder / "adapter", about["name"]),
            heads=heads,
            statistics=Statistics(**load_file(folder / "statistics.safetensors")),
            state=about["state"] | load_file(folder / "method.safetensors"),
            digests=about["digests"],
            gaussians=Gaussians(**load_file(folder / GAUSSIANS)) if GAUSSIANS in manifest else None,
        )

    # -- values

    def add_scores(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add measured values; one of the same step, task, scenario, task_id, rule and metric is replaced."""
        table = {_key(row): row for row in [*self.scores(), *rows]}
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table.values())
        write(self.folder / "scores.csv", text.getvalue())

    def scores(self) -> list[dict[str, Any]]:
        """The rows of scores.csv: `step` tasks had been learned when `value` was measured on `task`."""
        path = self.folder / "scores.csv"
        if not path.is_file():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            return [{**row, "step": int(row["step"]), "value": float(row["value"])} for row in csv.DictReader(file)]

    def matrix(self, rule: str | None = None, task_id: str = "posterior") -> Float[ndarray, "steps tasks"]:
        """The accuracy matrix R of a rule (by default the run's own): nan where nothing was measured."""
        rule = rule or self.combined()["label"]
        R = np.full((len(self.tasks), len(self.tasks)), np.nan)
        for row in self.scores():
            if row["rule"] == rule and row["task_id"] == task_id and row["step"] > 0 and row["task"] in self.tasks:
                R[row["step"] - 1, self.tasks.index(row["task"])] = row["value"]
        return R

    def event(self, values: Mapping[str, Any]) -> None:
        """Add one line to events.jsonl."""
        with (self.folder / "events.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def events(self) -> list[dict[str, Any]]:
        """The lines of events.jsonl."""
        path = self.folder / "events.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []

    def save_combined(self, rule: Mapping[str, Any]) -> None:
        """Write how the adapters are combined now."""
        write(self.folder / "combined.json", json.dumps(rule, indent=2))

    def combined(self) -> dict[str, Any]:
        """How the adapters are combined: name, options, space, since, and the candidates of a search."""
        path = self.folder / "combined.json"
        if not path.is_file():
            raise RunError(f"`{self.folder}` holds no combined model yet: no task was finished.")
        return json.loads(path.read_text(encoding="utf-8"))


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in COLUMNS[:-1])


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def check_empty(folder: str | Path) -> Path:
    """A folder that can be written: one that is not there, or has nothing in it."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"`{folder}` is there already and not empty. Give another `--output`, or remove it.")
    return folder


def write(path: Path, text: str) -> None:
    """Write a file so that at any moment it is whole: the old one or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    sync(temporary)
    os.replace(temporary, path)


def sync(path: Path) -> None:
    """See to it that a file is on the disk, and that others may read it as they may its folder."""
    path.chmod(path.parent.stat().st_mode & 0o666 or 0o644)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def dump_yaml(value: Mapping[str, Any]) -> str:
    """A mapping as YAML, in its own order."""
    return yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=110)
