"""Every method in two and three processes (gloo on the CPU), sharded or not: the run of one.

The normal tests take methods that do something of their own between processes, and other tests
take others; PERDURE_SOAK=1 takes all, on encoders and language models, and kills them.
"""

import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import process_runs
import pytest
import torch
from processes import LOSSES, PARAMETERS, ended, losses, same, together
from safetensors.torch import load_file
from small_runs import TEXTS

from perdure import Model, Run, RunError, names, verify
from perdure.checks.models import save, save_language_model
from perdure.report import report
from perdure.runs.answers import Answer
from perdure.runs.prediction import Prediction

CODE = Path(process_runs.__file__).read_text()
TESTS = str(Path(process_runs.__file__).parent)
SOAK = bool(os.environ.get("PERDURE_SOAK"))
FAMILIES = ("encoder", "causal", "seq2seq")
REASONS = {
    "online_replay": "`online_replay` runs in one process",
    "sequential-full": "`sharding: fsdp` shards frozen weights, but `peft: full` trains",
}
"""The beginnings of the reasons why methods refuse several processes, or sharding."""
FEW = ("lwf", "interpolation", "ranpac", "online_replay")
KILLED_AT = 5
"""The step of the second task after which a run is killed; it has a checkpoint of step 3."""
RELATIVE = 1e-3
"""The tolerance for heads and what a method remembers, relative to the largest entry."""

needs_soak = pytest.mark.skipif(not SOAK, reason="all methods take minutes: PERDURE_SOAK=1")


def methods(family: str) -> list[str]:
    """Return the methods that learn with a kind of model."""
    if not SOAK:
        return list(FEW)
    known = [*names("method"), "sequential-full"]
    if family == "encoder":
        return known
    return [name for name in known if not process_runs.method(name).needs & {"heads", "classes"}]


def refuses(name: str, sharding: str) -> bool:
    """Return True if a method does not learn in several processes."""
    return name == "online_replay" or (name == "sequential-full" and sharding == "fsdp")


@pytest.fixture(scope="module", params=FAMILIES if SOAK else FAMILIES[:1])
def alone(request, tmp_path_factory) -> tuple[str, Path]:
    """The kind of a model, and a folder with a run of one process by each method."""
    family, folder = request.param, tmp_path_factory.mktemp(request.param)
    if family == "encoder":
        save(folder / "model")
    else:
        save_language_model(folder / "model", family)
    assert process_runs.make(family, folder, methods(family), sharding="none", suffix="-1") == {}
    return family, folder


SHARINGS = [(2, "none")]
if SOAK:
    SHARINGS += [(3, "none"), (2, "fsdp"), (3, "fsdp")]


@pytest.mark.parametrize(("count", "sharding"), SHARINGS)
def test_the_run_of_one_process(count, sharding, alone):
    family, folder = alone
    suffix = f"-{count}-{sharding}"
    settings = {"methods": methods(family), "sharding": sharding, "suffix": suffix}
    refused = [name for name in methods(family) if refuses(name, sharding)]
    for out in launched(family, folder, settings, count):
        reasons = json.loads(out.splitlines()[-1])
        assert list(reasons) == refused
        assert all(reasons[name].startswith(REASONS[name]) for name in refused)
    different = {}
    for name in methods(family):
        if name not in refused:
            one, several = Run(folder / f"{name}-1"), Run(folder / f"{name}{suffix}")
            try:
                same(one, several)
                same_beside_the_module(one, several)
            except AssertionError as error:
                different[name] = str(error)
    assert different == {}


def launched(family: str, folder: Path, settings: dict, count: int) -> list[str]:
    """Make runs in several processes, and return what each has printed."""
    arguments = (family, folder, json.dumps(settings))
    return ended(together(CODE, *arguments, count=count, PYTHONPATH=TESTS))


def same_beside_the_module(one: Run, other: Run) -> None:
    """Check losses, heads and what a method remembers."""
    assert losses(other) == pytest.approx(losses(one), abs=LOSSES)
    for name in one.tasks:
        left, right = one.load_task(name), other.load_task(name)
        check_tensors(left.state, right.state)
        assert left.heads.keys() == right.heads.keys()
        for task, head in left.heads.items():
            check_tensors(head, right.heads[task])


def check_tensors(expected: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Check tensors relative to their largest entries, and other values exactly."""
    assert expected.keys() == values.keys()
    for key, value in expected.items():
        if not isinstance(value, torch.Tensor):
            assert values[key] == value, key
        elif value.numel():
            scale = value.double().abs().max().item()
            difference = (values[key].double() - value.double()).abs().max().item()
            assert difference <= RELATIVE * scale, f"{key} differs by {difference} of {scale}"


@needs_soak
def test_killed_and_resumed_by_other_numbers_of_processes(alone):
    """Two processes are killed in the second task; one and three finish copies of the run."""
    family, folder = alone
    learned = [name for name in methods(family) if not refuses(name, "none")]
    for name in learned:
        settings = {"methods": [name], "sharding": "none", "suffix": "-3"}
        kill(family, folder, settings | {"kill_at": process_runs.STEPS[family] + KILLED_AT})
        shutil.copytree(folder / f"{name}-3", folder / f"{name}-again")
    settings = {"methods": learned, "sharding": "none"}
    launched(family, folder, settings | {"suffix": "-3"}, count=3)
    process_runs.make(family, folder, **settings, suffix="-again")
    for name in learned:
        whole = Run(folder / f"{name}-1")
        for suffix in ("-3", "-again"):
            resumed = Run(folder / f"{name}{suffix}")
            same(whole, resumed)
            same_beside_the_module(whole, resumed)
            require_use(whole, resumed, folder / f"use-{name}{suffix}")


def kill(family: str, folder: Path, settings: dict) -> None:
    """Have two processes make a run; the first kills itself, and then the other one is killed."""
    arguments = (family, folder, json.dumps(settings))
    first, second = together(CODE, *arguments, PYTHONPATH=TESTS)
    _, said = first.communicate(timeout=600)
    second.send_signal(signal.SIGKILL)
    second.communicate(timeout=60)
    trains = process_runs.method(settings["methods"][0]).trains
    assert first.returncode == (-signal.SIGKILL if trains else 0), said


def require_use(whole: Run, resumed: Run, folder: Path) -> None:
    """Check that a run is complete, answers, is exported and reported as that of one process."""
    assert not verify(resumed.folder).faults
    texts = TEXTS[:8]
    expected, answers = (Model(run).predict(texts) for run in (whole, resumed))
    assert sum(map(agree, expected, answers)) >= len(texts) - 1, "two answers are equally likely"
    weights, again = exported(whole, folder / "whole"), exported(resumed, folder / "resumed")
    assert weights.keys() == again.keys()
    for name, value in weights.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=PARAMETERS)
    report([resumed.folder], folder / "report.html")
    assert (folder / "report.html").stat().st_size


def exported(run: Run, folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of an exported model, or nothing if its heads cannot be exported."""
    try:
        Model(run).export(folder)
    except RunError as error:
        assert "linear in random features" in str(error)
        return {}
    return load_file(folder / "model.safetensors")


def agree(one: Prediction | Answer, other: Prediction | Answer) -> bool:
    """Return True if two answers are the same."""
    key = "answer" if isinstance(one, Answer) else "label"
    return getattr(one, key) == getattr(other, key)
