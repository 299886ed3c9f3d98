"""The folder of one task: complete or absent, and checked before it is trusted."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

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

HEAD = "head.safetensors"
STATISTICS = "statistics.safetensors"
METHOD = "method.safetensors"
GAUSSIANS = "gaussians.safetensors"
ALWAYS = {HEAD, STATISTICS, METHOD, "task.json"}
"""The files that every task has."""
ADAPTER = {
    adapter_folder.START,
    f"adapter/{adapter_folder.CONFIG}",
    f"adapter/{adapter_folder.WEIGHTS}",
}
"""The files of a task whose method trains a module."""


# -- writing


def save(
    folder: Path,
    learned: Learned,
    *,
    base: str,
    head: tuple[str, nn.Linear] | None,
    task_type: str | None = None,
) -> None:
    """Write a task's folder: all of it, or nothing.

    `adapter_folder.contents` has the parameters.

    Raises
    ------
    OutputError
        The disk is full, or writing is not allowed.
    """
    # Every file is made in memory first, so that the room needed is known before anything is
    # written, and the manifest has the hashes of what was meant and not of what the disk gave back.
    contents = adapter_folder.contents(learned.adapter, base=base, head=head, task_type=task_type)
    contents |= _contents(learned)
    manifest = {}
    size = 0
    for name, content in sorted(contents.items()):
        digest = hashlib.sha256(content)
        manifest[name] = {"size": len(content), "sha256": digest.hexdigest()}
        size += len(content)
    with staging.new_folder(folder, size=size) as staged:
        for name, content in contents.items():
            path = staged / name
            path.parent.mkdir(exist_ok=True)
            files.put(path, content)
        # the last file: a folder without a manifest was never finished, and counts for nothing
        files.put(staged / "manifest.json", files.to_json(manifest))


def _contents(learned: Learned) -> dict[str, bytes]:
    """Return the bytes of each file but the adapter's, by its name."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, object] = {}
    for key, value in learned.state.items():
        if isinstance(value, Tensor):
            # safetensors refuses tensors that share memory or have gaps: hence the copy
            tensors[key] = value.detach().cpu().contiguous().clone()
        else:
            plain[key] = value
    heads: dict[str, Tensor] = {}
    for task, head in learned.heads.items():
        for key, value in head.items():
            heads[f"{task}/{key}"] = value
    about = {
        "name": learned.name,
        "classes": list(learned.classes),
        "digests": learned.digests,
        "state": plain,
    }
    contents = {
        HEAD: to_bytes(heads),
        STATISTICS: to_bytes(learned.statistics.tensors()),
        METHOD: to_bytes(tensors),
        "task.json": files.to_json(about).encode(),
    }
    if learned.gaussians:
        contents[GAUSSIANS] = to_bytes(learned.gaussians.tensors())
    return contents


def check_names(run: Path, names: Sequence[str]) -> None:
    """Check that the file system of a run can have a folder for each task.

    This is checked before anything is learned for such a task.

    Raises
    ------
    InputError
        The name of a task is too long, or the path of its files.
    """
    # the run's folder need not exist yet, but its limits are those of the folder that will hold it;
    # unlike `Path.is_dir`, `os.path.isdir` bears paths that are too long themselves
    above = next(parent for parent in run.absolute().parents if os.path.isdir(parent))
    longest_name = _limit(above, "PC_NAME_MAX", 255)
    longest_path = _limit(above, "PC_PATH_MAX", 4096)
    home = run.absolute() / "tasks"
    for number, name in enumerate(names):
        folder = f"{number:02d}-{name}"
        folder_bytes = len(os.fsencode(folder))
        if folder_bytes > longest_name:
            raise InputError(
                f"Task `{name}` cannot have a folder: `{folder}` has {folder_bytes} bytes, and the "
                f"file system allows {longest_name}. Give the task a shorter name."
            )
        # while it is written, the folder has a temporary name, which may be the longer one
        temporary = partial.new_path(home).name
        longer = max(folder_bytes, len(os.fsencode(temporary)))
        rest = f"//adapter/{adapter_folder.WEIGHTS}"
        path_bytes = len(os.fsencode(home)) + longer + len(rest)
        if path_bytes >= longest_path:  # the system's limit counts the zero byte at the end
            raise InputError(
                f"`{run}` is too long: the files of task `{name}` would have paths of {path_bytes} "
                f"bytes, and the system allows less than {longest_path}. Give another `--output`."
            )


def _limit(folder: Path, name: str, usual: int) -> int:
    """Return a limit of the file system; the usual one if unknown."""
    try:
        return os.pathconf(folder, name)
    except (OSError, ValueError):
        return usual


# -- reading


def load(folder: Path, *, rank: int | None = None) -> Learned:
    """Read a task's folder, once its files match its manifest and their shapes match each other.

    Parameters
    ----------
    rank
        The rank of the method's modules, as the recipe says; None if the method has none.

    Raises
    ------
    RunError
        A file is missing or is not what was written.
    """
    manifest = layout.manifest(folder)
    has_adapter = bool(rank) or layout.is_there(folder / "adapter")
    _check_listed(folder, manifest, has_adapter=has_adapter)
    check(folder, manifest)
    about = layout.task(folder)
    name = about["name"]
    with reading(folder):
        # headers only: a file that claims a huge shape is refused before it takes memory
        head = TensorFile(folder / HEAD)
        statistics = TensorFile(folder / STATISTICS)
        # a task without classes, which is answered with free text, is one group by itself
        _check_statistics(statistics, max(1, len(about["classes"])))
        # a language model answers without heads; `resume.check_fits` knows which backbone it is
        if head.tensors:
            _check_heads(folder, len(about["classes"]), head)
        gaussians = None
        if GAUSSIANS in manifest:
            gaussians = _gaussians(folder, name, len(about["classes"]), head)
        heads = _heads(head)
        if has_adapter:
            adapter = adapter_folder.load(folder / "adapter", name, rank)
        else:
            adapter = Adapter(name, None, {}, {})
        return Learned(
            classes=tuple(about["classes"]),
            adapter=adapter,
            heads=heads,
            statistics=Statistics(**statistics.read_all()),
            state=about["state"] | TensorFile(folder / METHOD).read_all(),
            digests=about["digests"],
            gaussians=gaussians,
        )


def _heads(head: TensorFile) -> dict[str, dict[str, Tensor]]:
    """Read the heads, by task; the file has them as `task/name`."""
    heads: dict[str, dict[str, Tensor]] = {}
    for key, value in head.read_all().items():
        task, _, name = key.partition("/")
        state = heads.setdefault(task, {})
        state[name] = value
    return heads


def _gaussians(folder: Path, name: str, classes: int, head: TensorFile) -> Gaussians:
    """Check and read the Gaussians of the features that the task's head reads."""
    file = TensorFile(folder / GAUSSIANS)
    # A head with a seed reads random features made from the backbone's, which have another width:
    # then the file itself says how wide the backbone's features are.
    width = None
    if f"{name}/{SEED}" not in head.tensors:
        weight = head.tensors[f"{name}/weight"]
        width = weight.shape[1]
    _check_gaussians(file, classes, width)
    return Gaussians(**file.read_all())


# -- checks


def _check_listed(folder: Path, manifest: Mapping[str, object], *, has_adapter: bool) -> None:
    """Raise `RunError` if the manifest lacks a file that belongs to the task.

    A file that it does not list would not be checked.
    """
    expected = set(ALWAYS)
    if has_adapter:
        expected |= ADAPTER
    for name in (GAUSSIANS, *adapter_folder.KEPT.values()):
        if layout.is_there(folder / name):
            expected.add(name)
    if unlisted := expected - manifest.keys():
        raise RunError(
            f"`{folder / 'manifest.json'}` does not list `{min(unlisted)}`. "
            "It is damaged or was changed."
        )


def check(folder: Path, manifest: Mapping[str, Mapping[str, object]]) -> None:
    """Raise `RunError` if a file of a task is missing or is not what was written."""
    home = folder.resolve()
    for name, expected in manifest.items():
        path = folder / name
        with reading(path):
            # a link may lead out of the folder; the size is cheap to compare, and often enough
            plausible = (
                path.is_file()
                and path.resolve().is_relative_to(home)
                and path.stat().st_size == expected["size"]
            )
            if not plausible or _fingerprint(path) != expected:
                raise RunError(
                    f"`{path}` is not what was written: it is missing, damaged, or was changed."
                )


def _check_statistics(statistics: TensorFile, groups: int) -> None:
    """Check the shapes of statistics against the number of groups, before reading."""
    shapes = {key: stored.shape for key, stored in statistics.tensors.items()}
    products = shapes.get("products", (0,))
    width = products[:1]  # the number of features, as a tuple of one
    expected = {
        "counts": (groups,),
        "sums": (groups, *width),
        "products": (*width, *width),
    }
    if shapes != expected:
        raise RunError(
            f"`{statistics.path}` is damaged: {shapes} are not statistics of {groups} classes."
        )


def _check_heads(folder: Path, classes: int, head: TensorFile) -> None:
    """Check the shapes of heads against the number of classes, before reading."""
    task = folder.name.split("-", 1)[1]
    for key in head.tensors:
        _check_head_tensor(head, key, task)
    bias = head.tensors.get(f"{task}/bias")
    if bias is None or bias.shape != (classes,):
        raise RunError(
            f"`{head.path}` is damaged: it has no head of {classes} classes for the task `{task}`."
        )


def _check_head_tensor(head: TensorFile, key: str, task: str) -> None:
    """Check the shape of one tensor: all heads read the same features as the head of `task`."""
    stored = head.tensors[key]
    owner, _, name = key.partition("/")
    # Where a head has no bias, or the task no head, the tensor stands in for the missing one: the
    # comparison below then fails on it.
    bias = head.tensors.get(f"{owner}/bias", stored)
    weight = head.tensors.get(f"{task}/weight", stored)
    outputs = bias.shape
    columns = weight.shape[1:]
    expected = {
        "weight": (*outputs, *columns),
        "bias": outputs,
        SEED: (),
    }
    fits = stored.shape == expected.get(name)
    fits = fits and len(outputs) == 1 and len(columns) == 1
    if name == SEED:
        fits = fits and stored.dtype == "I64"
    if not fits:
        raise RunError(f"`{head.path}` is damaged: `{key}` has the shape {stored.shape}.")


def _check_gaussians(file: TensorFile, classes: int, width: int | None) -> None:
    shapes = {key: stored.shape for key, stored in file.tensors.items()}
    if not width:
        means = shapes.get("means", (0,))
        width = means[-1]
    expected = {
        "means": (classes, width),
        "covariances": (classes, width, width),
    }
    if shapes != expected:
        raise RunError(
            f"`{file.path}` is damaged: {shapes} are not Gaussians of {classes} classes "
            f"in {width} dimensions."
        )


def not_finite(learned: Learned) -> list[str]:
    """Return the names of a task's tensors that hold values which are not finite."""
    groups: dict[str, Mapping[str, object]] = {
        "adapter": learned.adapter.parameters,
        "start": learned.adapter.start,
        **learned.adapter.kept,
        "statistics": learned.statistics.tensors(),
        "method": learned.state,
        "gaussians": learned.gaussians.tensors() if learned.gaussians else {},
    }
    for task, head in learned.heads.items():
        groups[f"head {task}"] = head
    names = []
    for group, values in groups.items():
        for name, value in values.items():
            if not isinstance(value, Tensor) or not value.dtype.is_floating_point:
                continue
            if not is_finite(value):
                names.append(f"{group} {name}")
    return names


def _fingerprint(path: Path) -> dict[str, object]:
    """Return a file's size and SHA-256, as its manifest has them."""
    with files.open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256")
        return {"size": path.stat().st_size, "sha256": digest.hexdigest()}
