"""The folder of one task: either complete or absent, and checked before it is used."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from perdure.errors import InputError, RunError
from perdure.evaluation.system import Learned
from perdure.evaluation.validation import DISTANCES, TEMPERATURES, Validation
from perdure.models.adapters import Adapter
from perdure.models.heads import GAMMA, SEED, THETA, UNIT
from perdure.runs import adapter_folder, layout
from perdure.runs.layout import reading
from perdure.storage import files, partial, staging
from perdure.storage.tensors import TensorFile, is_finite
from perdure.vectors.gaussians import Gaussians
from perdure.vectors.statistics import Statistics

HEAD = "head.safetensors"
HEAD_DTYPES = {SEED: "I64", GAMMA: "F32", UNIT: "BOOL"}
"""The data types, as safetensors names them, of the single numbers in a head."""
SHARED_THETA = f"/{THETA}"
"""The key of the matrices θ that all heads of a file share, and that it therefore stores once.

Other keys begin with the name of a task.
"""
STATISTICS = "statistics.safetensors"
METHOD = "method.safetensors"
GAUSSIANS = "gaussians.safetensors"
VALIDATION = "validation.safetensors"
ALWAYS = {HEAD, STATISTICS, METHOD, "task.json"}
"""The files that every task has."""
ADAPTER = {
    adapter_folder.START,
    f"adapter/{adapter_folder.CONFIG}",
    f"adapter/{adapter_folder.WEIGHTS}",
}
"""The additional files of a task whose method trains a module."""


# -- writing


def save(
    folder: Path,
    learned: Learned,
    *,
    base: str,
    head: tuple[str, nn.Linear] | None,
    task_type: str | None = None,
) -> None:
    """Write a task's folder, completely or not at all.

    The parameters are explained at `adapter_folder.contents`.

    Raises
    ------
    OutputError
        The disk is full, or writing is not allowed.
    """
    # Every file is created in memory first, so that the space needed is known before
    # anything is written, and the manifest has the hashes of the intended contents, not
    # of what the disk returned.
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
        # the last file: a folder without a manifest was never finished, and is ignored
        files.put(staged / "manifest.json", files.to_json(manifest))


def _contents(learned: Learned) -> dict[str, bytes]:
    """Return the contents of each file except those of the adapter, by file name."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, object] = {}
    for key, value in learned.state.items():
        if isinstance(value, Tensor):
            # a copy, because safetensors rejects tensors that share memory or have gaps
            tensors[key] = value.detach().cpu().contiguous().clone()
        else:
            plain[key] = value
    heads: dict[str, Tensor] = {}
    for task, head in learned.heads.items():
        for key, value in head.items():
            name = SHARED_THETA if key == THETA else f"{task}/{key}"
            heads[name] = value
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
    if learned.validation:
        contents[VALIDATION] = to_bytes(learned.validation.tensors())
    return contents


def check_names(run: Path, names: Sequence[str]) -> None:
    """Check that the file system allows a folder for each task of a run.

    This is checked before any of these tasks is learned.

    Raises
    ------
    InputError
        The name of a task or the path of one of its files is too long.
    """
    # the run folder may not exist yet, but its limits are those of its nearest existing
    # parent; unlike `Path.is_dir`, `os.path.isdir` does not raise an error if a path is
    # too long
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
        # while it is being written, the folder has a temporary name, which may be longer
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
    """Return a limit of the file system, or the usual one if it is unknown."""
    try:
        return os.pathconf(folder, name)
    except (OSError, ValueError):
        return usual


# -- reading


def load(folder: Path, *, rank: int | None = None) -> Learned:
    """Load a task from its folder, after checking the files against the manifest and each other.

    Parameters
    ----------
    rank
        The rank of the method's modules, according to the recipe; None if the method has none.

    Raises
    ------
    RunError
        A file is missing or differs from what was written.
    """
    manifest = layout.manifest(folder)
    has_adapter = bool(rank) or layout.is_there(folder / "adapter")
    _check_listed(folder, manifest, has_adapter=has_adapter)
    check(folder, manifest)
    about = layout.task(folder)
    name = about["name"]
    with reading(folder):
        # headers only: a file that claims a huge shape is rejected before it takes memory
        head = TensorFile(folder / HEAD)
        statistics = TensorFile(folder / STATISTICS)
        # a task without classes, which is answered with free text, is a single group
        _check_statistics(statistics, max(1, len(about["classes"])))
        # a language model has no heads; `resume.check_fits` checks this, as it knows the backbone
        if head.tensors:
            _check_heads(folder, len(about["classes"]), head)
        gaussians = None
        if GAUSSIANS in manifest:
            gaussians = _gaussians(folder, name, len(about["classes"]), head)
        validation = None
        if VALIDATION in manifest:
            validation = _validation(folder)
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
            validation=validation,
        )


def _heads(head: TensorFile) -> dict[str, dict[str, Tensor]]:
    """Read all heads, by task, from a file in which they are stored as `task/name`."""
    heads: dict[str, dict[str, Tensor]] = {}
    tensors = head.read_all()
    theta = tensors.pop(SHARED_THETA, None)
    for key, value in tensors.items():
        task, _, name = key.partition("/")
        state = heads.setdefault(task, {})
        state[name] = value
    if theta is not None:
        for state in heads.values():
            state[THETA] = theta
    return heads


def _gaussians(folder: Path, name: str, classes: int, head: TensorFile) -> Gaussians:
    """Check and load the Gaussians of a task's features."""
    file = TensorFile(folder / GAUSSIANS)
    # A head with a seed reads random features computed from the backbone's, with another
    # width: then the width of the backbone's features is taken from the file itself.
    width = None
    if f"{name}/{SEED}" not in head.tensors:
        weight = head.tensors[f"{name}/weight"]
        width = weight.shape[1]
    _check_gaussians(file, classes, width)
    return Gaussians(**file.read_all())


def _validation(folder: Path) -> Validation:
    """Check and load the fit of a task's Gaussian classes to its validation examples."""
    file = TensorFile(folder / VALIDATION)
    shapes = {key: stored.shape for key, stored in file.tensors.items()}
    distances = shapes.get("distances", ())
    expected = {"losses": tuple(TEMPERATURES.shape), "distances": distances}
    if shapes != expected or len(distances) != 1 or not 1 <= distances[0] <= DISTANCES:
        raise RunError(
            f"`{file.path}` is damaged: {shapes} are not the fit to a task's validation examples."
        )
    return Validation(**file.read_all())


# -- checks


def _check_listed(folder: Path, manifest: Mapping[str, object], *, has_adapter: bool) -> None:
    """Raise `RunError` if the manifest does not list a file that belongs to the task.

    A file that is not listed would not be checked.
    """
    expected = set(ALWAYS)
    if has_adapter:
        expected |= ADAPTER
    for name in (GAUSSIANS, VALIDATION, *adapter_folder.KEPT.values()):
        if layout.is_there(folder / name):
            expected.add(name)
    if unlisted := expected - manifest.keys():
        raise RunError(
            f"`{folder / 'manifest.json'}` does not list `{min(unlisted)}`. "
            "It is damaged or was changed."
        )


def check(folder: Path, manifest: Mapping[str, Mapping[str, object]]) -> None:
    """Raise `RunError` if a file of a task is missing or differs from what was written."""
    home = folder.resolve()
    for name, expected in manifest.items():
        path = folder / name
        with reading(path):
            # a link may lead out of the folder; comparing sizes is cheap, and often reveals damage
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
    """Check the shapes of statistics against the number of groups, before reading the values."""
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
    """Check the shapes of heads against the number of classes, before reading the values."""
    task = folder.name.split("-", 1)[1]
    for key in head.tensors:
        _check_head_tensor(head, key, task)
    bias = head.tensors.get(f"{task}/bias")
    if bias is None or bias.shape != (classes,):
        raise RunError(
            f"`{head.path}` is damaged: it has no head of {classes} classes for the task `{task}`."
        )


def _check_head_tensor(head: TensorFile, key: str, task: str) -> None:
    """Check the shape of one tensor of a head.

    All heads must read the same features as the head of `task`.
    """
    stored = head.tensors[key]
    if key == SHARED_THETA:
        _check_theta(head, task)
        return
    owner, _, name = key.partition("/")
    # If a head has no bias, or the task has no head, the tensor itself replaces the
    # missing one, so that the comparison below fails.
    bias = head.tensors.get(f"{owner}/bias", stored)
    weight = head.tensors.get(f"{task}/weight", stored)
    outputs = bias.shape
    columns = weight.shape[1:]
    expected = {
        "weight": (*outputs, *columns),
        "bias": outputs,
        SEED: (),
        GAMMA: (),
        UNIT: (),
    }
    fits = stored.shape == expected.get(name)
    fits = fits and len(outputs) == 1 and len(columns) == 1
    if name in HEAD_DTYPES:
        fits = fits and stored.dtype == HEAD_DTYPES[name]
    if not fits:
        raise RunError(f"`{head.path}` is damaged: `{key}` has the shape {stored.shape}.")


def _check_theta(head: TensorFile, task: str) -> None:
    """Check that the shared matrices θ have as many rows as the heads read features."""
    stored = head.tensors[SHARED_THETA]
    weight = head.tensors.get(f"{task}/weight", stored)
    fits = len(stored.shape) == 3 and stored.shape[1:2] == weight.shape[1:]
    if not fits or stored.dtype != "F32":
        raise RunError(
            f"`{head.path}` is damaged: `{THETA}` has the shape {stored.shape} and the type "
            f"{stored.dtype}."
        )


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
    """Return the names of a task's tensors that contain NaN or infinite values."""
    groups: dict[str, Mapping[str, object]] = {
        "adapter": learned.adapter.parameters,
        "start": learned.adapter.start,
        **learned.adapter.kept,
        "statistics": learned.statistics.tensors(),
        "method": learned.state,
        "gaussians": learned.gaussians.tensors() if learned.gaussians else {},
        "validation": learned.validation.tensors() if learned.validation else {},
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
    """Return a file's size and SHA-256, in the form used in a manifest."""
    with files.open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256")
        return {"size": path.stat().st_size, "sha256": digest.hexdigest()}
