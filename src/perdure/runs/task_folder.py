"""The folder of one task: complete or absent, and checked before it is believed."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from perdure.errors import InputError, RunError
from perdure.evaluation.system import Learned
from perdure.models.adapters import Adapter
from perdure.models.heads import SEED
from perdure.runs import adapter_folder, layout
from perdure.runs.layout import reading
from perdure.storage import files, partial, staging
from perdure.storage.tensors import TensorFile, is_finite
from perdure.vectors.gaussians import Gaussians
from perdure.vectors.statistics import Statistics

HEAD, STATISTICS, METHOD, GAUSSIANS = (
    "head.safetensors",
    "statistics.safetensors",
    "method.safetensors",
    "gaussians.safetensors",
)
ALWAYS = {HEAD, STATISTICS, METHOD, "task.json"}
ADAPTER = {
    adapter_folder.START,
    *(f"adapter/{name}" for name in (adapter_folder.CONFIG, adapter_folder.WEIGHTS)),
}


def save(place: Path, learned: Learned, *, base: str, head: tuple[str, nn.Linear] | None) -> None:
    """Write a task's folder: all of it, or nothing.

    Raises
    ------
    OutputError
        The disk is full, or writing is not allowed.
    """
    found = {key: value for key, value in learned.state.items() if isinstance(value, Tensor)}
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in found.items()}
    plain = {key: value for key, value in learned.state.items() if key not in tensors}
    heads = {
        f"{task}/{key}": value
        for task, head in learned.heads.items()
        for key, value in head.items()
    }
    about = {
        "name": learned.name,
        "classes": list(learned.classes),
        "digests": learned.digests,
        "state": plain,
    }
    contents = adapter_folder.contents(learned.adapter, base=base, head=head) | {
        HEAD: to_bytes(heads),
        STATISTICS: to_bytes(learned.statistics.tensors()),
        METHOD: to_bytes(tensors),
        "task.json": files.to_json(about).encode(),
    }
    if learned.gaussians:
        contents[GAUSSIANS] = to_bytes(learned.gaussians.tensors())
    manifest = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in sorted(contents.items())
    }
    with staging.new_folder(place, size=sum(map(len, contents.values()))) as folder:
        for name, content in contents.items():
            (folder / name).parent.mkdir(exist_ok=True)
            files.put(folder / name, content)
        files.put(folder / "manifest.json", files.to_json(manifest))


def check_names(run: Path, names: Sequence[str]) -> None:
    """Check that the file system of a run can have a folder for each task, before anything is learned for it.

    Raises
    ------
    InputError
        The name of a task is too long, or the path of its files.
    """
    # unlike `Path.is_dir`, this bears paths that are too long themselves
    above = next(parent for parent in run.absolute().parents if os.path.isdir(parent))
    longest_name, longest_path = (
        _limit(above, "PC_NAME_MAX", 255),
        _limit(above, "PC_PATH_MAX", 4096),
    )
    for number, name in enumerate(names):
        folder = f"{number:02d}-{name}"
        if len(os.fsencode(folder)) > longest_name:
            raise InputError(
                f"Task `{name}` cannot have a folder: `{folder}` has {len(os.fsencode(folder))} bytes, and the file "
                f"system allows {longest_name}. Give the task a shorter name."
            )
        home = run.absolute() / "tasks"
        path = max(len(os.fsencode(folder)), len(partial.new_path(home).name))
        path += len(os.fsencode(home)) + len(f"//adapter/{adapter_folder.WEIGHTS}")
        if path >= longest_path:
            raise InputError(
                f"`{run}` is too long: the files of task `{name}` would have paths of {path} bytes, and the system "
                f"allows less than {longest_path}. Give another `--output`."
            )


def _limit(folder: Path, name: str, usual: int) -> int:
    try:
        return os.pathconf(folder, name)
    except (OSError, ValueError):
        return usual


def load(place: Path, *, rank: int | None = None) -> Learned:
    """Read a task's folder, after its files have been compared with its manifest and their shapes with each other.

    Parameters
    ----------
    rank
        Of the method's modules, as the recipe says; nothing where the method needs none.

    Raises
    ------
    RunError
        A file is missing or is not what was written.
    """
    manifest = layout.manifest(place)
    present = {
        name for name in (GAUSSIANS, *adapter_folder.KEPT.values()) if layout.is_there(place / name)
    }
    needed = ADAPTER if rank or layout.is_there(place / "adapter") else set[str]()
    if unlisted := {*ALWAYS, *needed, *present} - manifest.keys():
        raise RunError(
            f"`{place / 'manifest.json'}` does not list `{min(unlisted)}`. It is damaged or was changed."
        )
    check(place, manifest)
    about = layout.task(place)
    with reading(place):
        head, statistics = TensorFile(place / HEAD), TensorFile(place / STATISTICS)
        _check_shapes(place, len(about["classes"]), head, statistics)
        gaussians = TensorFile(place / GAUSSIANS) if GAUSSIANS in manifest else None
        if gaussians:
            of_feature = (
                f"{about['name']}/{SEED}" not in head.tensors
            )  # random features are more, or fewer
            width = head.tensors[f"{about['name']}/weight"].shape[1] if of_feature else None
            _check_gaussians(gaussians, len(about["classes"]), width)
        found = gaussians.read_all() if gaussians else None
        heads: dict[str, dict[str, Tensor]] = {}
        for key, value in head.read_all().items():
            task, _, name = key.partition("/")
            heads.setdefault(task, {})[name] = value
        return Learned(
            classes=tuple(about["classes"]),
            adapter=adapter_folder.load(place / "adapter", about["name"], rank)
            if needed
            else Adapter(about["name"], None, {}, {}),
            heads=heads,
            statistics=Statistics(**statistics.read_all()),
            state=about["state"] | TensorFile(place / METHOD).read_all(),
            digests=about["digests"],
            gaussians=Gaussians(**found) if found else None,
        )


def check(place: Path, manifest: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise `RunError` if a file of a task is missing or is not what was written."""
    home = place.resolve()
    for name, expected in manifest.items():
        path = place / name
        with reading(path):
            whole = (
                path.is_file()
                and path.resolve().is_relative_to(home)
                and path.stat().st_size == expected["size"]
            )
            if not whole or _fingerprint(path) != expected:
                raise RunError(
                    f"`{path}` is not what was written: it is missing, damaged, or was changed."
                )


def _check_shapes(place: Path, classes: int, head: TensorFile, statistics: TensorFile) -> None:
    """Before anything is read: the shapes of heads and statistics, which have to fit the number of classes."""
    shapes = {key: stored.shape for key, stored in statistics.tensors.items()}
    width = shapes.get("products", (0,))[:1]
    if shapes != {"counts": (classes,), "sums": (classes, *width), "products": (*width, *width)}:
        raise RunError(
            f"`{statistics.path}` is damaged: {shapes} are no statistics of {classes} classes."
        )
    own = place.name.split("-", 1)[1]
    for key, stored in head.tensors.items():
        task, _, name = key.partition("/")
        outputs = head.tensors.get(f"{task}/bias", stored).shape
        columns = head.tensors.get(f"{own}/weight", stored).shape[1:]
        shape = {"weight": (*outputs, *columns), "bias": outputs, SEED: ()}.get(name)
        whole = name != SEED or stored.dtype == "I64"
        if stored.shape != shape or len(outputs) != 1 or len(columns) != 1 or not whole:
            raise RunError(f"`{head.path}` is damaged: `{key}` has the shape {stored.shape}.")
    if f"{own}/bias" not in head.tensors or head.tensors[f"{own}/bias"].shape != (classes,):
        raise RunError(
            f"`{head.path}` is damaged: it has no head of {classes} classes for the task `{own}`."
        )


def _check_gaussians(file: TensorFile, classes: int, width: int | None) -> None:
    shapes = {key: stored.shape for key, stored in file.tensors.items()}
    width = width or shapes.get("means", (0,))[-1]
    if shapes != {"means": (classes, width), "covariances": (classes, width, width)}:
        raise RunError(
            f"`{file.path}` is damaged: {shapes} are no Gaussians of {classes} classes in {width} dimensions."
        )


def not_finite(learned: Learned) -> list[str]:
    """What of a task holds values that are not finite."""
    parts: dict[str, Mapping[str, Any]] = {
        "adapter": learned.adapter.parameters,
        "start": learned.adapter.start,
        **learned.adapter.kept,
        "statistics": learned.statistics.tensors(),
        "method": learned.state,
        "gaussians": learned.gaussians.tensors() if learned.gaussians else {},
        **{f"head {task}": head for task, head in learned.heads.items()},
    }
    return [
        f"{where} {name}"
        for where, values in parts.items()
        for name, value in values.items()
        if isinstance(value, Tensor) and value.dtype.is_floating_point and not is_finite(value)
    ]


def _fingerprint(path: Path) -> dict[str, Any]:
    with files.open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256")
        return {"size": path.stat().st_size, "sha256": digest.hexdigest()}
