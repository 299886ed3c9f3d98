"""Two processes that train one model (as `accelerate launch` has them,
gloo on the CPU) come to what one comes to.

The sums of gradients are added in another order, so that parameters differ in their last digits,
and a test example whose two likeliest classes are equally likely may get the other one.
The tolerances below are those that are promised.
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pico_language
import pytest
import torch
import yaml
from processes import PARAMETERS, TRAINING, same, start, stop, wait_for
from tables import write

import perdure
from perdure import Recipe, Run

LAUNCH = (
    *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
)


def launched(recipe: Path, output: Path) -> str:
    """Return what `accelerate launch` of the command line with two processes prints."""
    environment = os.environ | {
        "PYTHONPATH": str(Path(perdure.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    command = [
        sys.executable,
        "-m",
        *LAUNCH,
        "-m",
        "perdure",
        "run",
        str(recipe),
        "--output",
        str(output),
        "--quiet",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def recipe(pico, toy, tmp_path_factory) -> Path:
    """Two tasks of odd sizes: the last batch of an epoch is one example, which one process gets."""
    folder = tmp_path_factory.mktemp("processes")
    stream = []
    for task in toy.tasks[:2]:
        for split in ("train", "validation", "test"):
            rows = getattr(task, split)
            size = 33 if split == "train" else len(rows)
            rows = [
                (rows["text"][i % len(rows)], task.classes[rows["label"][i % len(rows)]])
                for i in range(size)
            ]
            write(folder / f"{task.name}-{split}.csv", rows)
        files = {
            split: str(folder / f"{task.name}-{split}.csv")
            for split in ("train", "validation", "test")
        }
        stream.append({"name": task.name, "data": files})
    backbone = {"model": str(pico("bert")), "pooling": "mean", "max_length": 16}
    values = {
        "stream": stream,
        "backbone": backbone,
        "method": {"name": "isolated", "rank": 2},
        "training": TRAINING,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def alone(recipe) -> Run:
    return Recipe.read(recipe).run(recipe.parent / "alone")


def test_two_processes_come_to_what_one_comes_to(alone, recipe):
    out = launched(recipe, recipe.parent / "two")
    assert out.count("task posterior") == 1, "one of them prints"
    two = Run(recipe.parent / "two")
    same(alone, two)
    first = [run.load_task("fruit").adapter.parameters for run in (alone, two)]
    assert any(not torch.equal(first[0][key], first[1][key]) for key in first[0]), (
        "did two processes train at all?"
    )


def by_one_and_by_two(recipe: Path, method: dict[str, object]) -> tuple[Run, Run]:
    """Learn both tasks with a method, in one process and in two; compare what both promise."""
    values = yaml.safe_load(recipe.read_text())
    values["method"] = {"rank": 2, **method}
    values["training"]["epochs"] = 2
    path = recipe.parent / f"{method['name']}.yaml"
    path.write_text(yaml.safe_dump(values))
    output = recipe.parent / f"{method['name']}-two"
    processes = start(path, output)
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    one, two = Recipe.read(path).run(recipe.parent / f"{method['name']}-one"), Run(output)
    same(one, two)
    return one, two


def test_samples_of_weights_and_a_divergence(recipe):
    """The prior counts once, and all processes draw the same sample of the weights."""
    one, two = by_one_and_by_two(recipe, {"name": "vcl", "sampling": "weights", "beta": 0.1})
    states = [run.load_task("fruit").state for run in (one, two)]
    assert any("log_sigma" in name for name in states[0])
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=0, atol=PARAMETERS)


@pytest.mark.parametrize("name", ["bgd", "badam"])
def test_sigmas_and_moments_of_samples(name, recipe):
    """Both processes draw the same samples, and σ follows the products of all examples."""
    initial = 0.1
    method = {"name": name, "samples": 2, "initial_sigma": initial}
    one, two = by_one_and_by_two(recipe, method)
    left, right = (run.load_task(run.tasks[-1]).state for run in (one, two))
    assert list(left) == list(right)
    for key, value in left.items():
        if key.startswith("sigma/"):
            # Not σ itself: it would be nearly the same without the products of one process.
            change, again = value - initial, right[key] - initial
            assert change.abs().max() > 0
            torch.testing.assert_close(again, change, rtol=0, atol=0.01 * change.abs().max().item())
        elif key != "steps":
            scale = value.abs().max().item()
            torch.testing.assert_close(right[key], value, rtol=0, atol=0.01 * scale)


def test_killed_and_resumed_by_two_and_by_one(alone, recipe):
    """Kill -9 of all processes, of one of them, and SIGTERM, at seeded moments;
    one process finishes the run.
    """
    seeded, output, kills = random.Random(0), recipe.parent / "killed", 0
    for how in ("all", "first", "term"):
        processes = start(recipe, output)
        wait_for(output, processes)
        time.sleep(seeded.uniform(0, 0.3))
        kills += all(process.poll() is None for process in processes)
        stop(processes, how)
        if (output / "recipe.yaml").exists():
            assert len(Run(output).tasks) <= 2
    assert kills >= 2
    same(alone, Recipe.read(recipe).run(output))


def test_a_second_run_is_told_who_holds_the_first(alone, recipe):
    """All processes of the second one end, and say so once."""
    from perdure.storage import lock

    with lock.held(alone.folder):
        processes = start(recipe, alone.folder)
        said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], said
    assert "".join(said).count(f"is being written by process {os.getpid()}") == 1


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_language_model(kind, tmp_path):
    """Each process has answers of other lengths: the mean is over examples, not over tokens."""
    words = ("apple", "a pear of another length")
    for name in ("fruit", "tree"):
        rows = [(f"{name} {i} {'x' * (i % 5)}?", words[i % 2]) for i in range(15)]
        write(tmp_path / f"{name}.csv", rows)
    files = [{"name": name, "data": str(tmp_path / f"{name}.csv")} for name in ("fruit", "tree")]
    values = {
        "stream": files,
        "backbone": {"model": str(pico_language.save(tmp_path / "model", kind))},
        "method": {"name": "inflora", "rank": 2},
        "training": TRAINING | {"epochs": 2},
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    launched(recipe, tmp_path / "two")
    one, two = Recipe.read(recipe).run(tmp_path / "one"), Run(tmp_path / "two")
    for name in ("fruit", "tree"):
        left, right = (run.load_task(name).adapter.parameters for run in (one, two))
        for key, value in left.items():
            torch.testing.assert_close(right[key], value, rtol=0, atol=PARAMETERS)
    losses = [[e["loss"] for e in run.events() if e["event"] == "step"] for run in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-3) and len(losses[0]) == 8
