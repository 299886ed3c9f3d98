"""What several processes gain for a sweep of small runs, and what Ray costs beside them.

Eight runs of three tasks on a pico BERT, with one local worker, with two, and as tasks of a Ray
with two CPUs. The time is the clock's, since a sweep saves no CPU time; it begins when the
executor is connected, and includes the imports of the worker processes. All runs of a trial have
to be equal, byte for byte. The exit status is 1 when they are not, or a target is missed. Ray is
left out, with a message, where it is not installed.
"""

import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path

from measure import Row, table

from perdure import sweep
from perdure.checks.models import save, toy_stream
from perdure.sweeps.executor import Executor
from perdure.sweeps.local import Local
from perdure.sweeps.on_ray import OnRay

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 40
SAME = ("scores.csv", "combined.json", "adapter/adapter_model.safetensors", "head.safetensors")
"""Files that depend on nothing but what was learned."""


def write_sweep(folder: Path) -> Path:
    """Write a sweep of eight seeds of a small recipe, with its data and its model."""
    stream = []
    for task in toy_stream():
        data = folder / f"{task.name}.jsonl"
        lines = []
        for row in [*task.train, *task.validation, *task.test]:
            label = task.classes[row["label"]]
            lines.append(json.dumps({"text": row["text"], "label": label}))
        data.write_text("\n".join(lines))
        stream.append({"data": str(data)})
    recipe = {
        "stream": stream,
        "backbone": {"model": str(save(folder / "bert")), "pooling": "mean", "max_length": 16},
        "training": {"epochs": EPOCHS, "batch_size": 8, "learning_rate": 0.01},
    }
    path = folder / "sweep.yaml"
    path.write_text(json.dumps({"recipe": recipe, "grid": {"seed": list(range(8))}}))
    return path


def seconds(path: Path, executor: Executor, output: Path) -> float:
    """Return the seconds of a sweep, without those for connecting to the executor."""
    executor.connect()
    executor.connect = lambda: None
    started = time.perf_counter()
    done = sweep(path, output, executor=executor)
    assert len(done.runs) == 8, done.failed
    return time.perf_counter() - started


def at_a_time(output: Path, wall: float) -> float:
    """Return how many trials ran at the same time, on average over the whole sweep.

    Other work on the machine makes all trials slower, but does not change this number.
    """
    lines = (output / "trials.jsonl").read_text().splitlines()
    return sum(json.loads(line)["seconds"] for line in lines) / wall


def equal(folder: Path, others: list[str]) -> str:
    """Check that the runs of all sweeps are equal, and say so."""
    compared = 0
    for path in sorted(folder.glob("one/runs/**/*")):
        if any(str(path).endswith(name) for name in SAME):
            compared += 1
            for other in others:
                twin = folder / other / path.relative_to(folder / "one")
                assert twin.read_bytes() == path.read_bytes(), twin
    return f"{compared} files, byte for byte"


def main() -> int:
    executors: dict[str, Executor] = {"one": Local(1), "two": Local(2)}
    if importlib.util.find_spec("ray"):
        import ray

        ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
        executors["ray"] = OnRay()
    else:
        print("Ray is not installed (pip install 'perdure[ray]'), and is left out.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_sweep(folder)
        times = {}
        for name, executor in executors.items():
            times[name] = seconds(path, executor, folder / name)
        same = equal(folder, list(times)[1:])
        busy = {name: at_a_time(folder / name, times[name]) for name in times}
    said = {name: f"{times[name]:.0f} s ({busy[name]:.2f} trials at a time)" for name in times}
    sides = f"one {said['one']}, two {said['two']}"
    rows = [Row("8 runs, 2 local workers", sides, times["one"] / times["two"], 1.7, equal=same)]
    if "ray" in times:
        sides = f"Ray {said['ray']}, two local {said['two']}"
        ratio = times["ray"] / times["two"]
        rows.append(Row("8 runs, Ray with 2 CPUs", sides, ratio, 1.3, least=False, equal=same))
    print(table(rows))
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
