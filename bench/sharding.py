"""A run on a pico Llama by one process, by two, and by two that shard its weights (gloo, CPU).

The losses have to be equal, and a process that shards may store at most 0.6 of the weights: half
of the frozen ones, and the module, which is whole everywhere. The exit status is 1 otherwise.
What a step costs is measured, without a target: on so small a model it is communication.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from measure import Row, table
from torch.distributed.tensor import DTensor

import perdure
from perdure import Backbone, Training
from perdure.checks.models import save_language_model, text_stream
from perdure.learning import engine
from perdure.learning.loop import Session, learn

SIDES = {"one process": (1, "none"), "two": (2, "none"), "two, sharded": (2, "fsdp")}


def work(folder: Path, sharding: str) -> None:
    """Learn two tasks; each process writes its losses, its share of the weights and its time."""
    torch.set_num_threads(1)
    backbone = Backbone.load(folder / "model", max_length=24, max_new_tokens=8)
    method = perdure.find("method", "sequential")(rank=4)
    training = Training(
        epochs=4, batch_size=8, learning_rate=0.01, backbone_dropout=False, sharding=sharding
    )
    losses: list[float] = []
    session = Session(log=lambda event: losses.append(event["loss"]))
    tasks = text_stream().tasks
    start = time.process_time()
    for number in range(len(tasks)):
        learn(backbone, tasks[: number + 1], method, training, session=session)
    seconds = time.process_time() - start
    stored = whole = 0
    for value in backbone.parameters():
        whole += value.numel()
        stored += value.to_local().numel() if isinstance(value, DTensor) else value.numel()
    result = {"losses": losses, "share": stored / whole, "seconds": seconds / len(losses)}
    (folder / f"{engine.number()}.json").write_text(json.dumps(result))
    if engine.count() > 1:
        torch.distributed.destroy_process_group()


def launched(folder: Path, count: int, sharding: str) -> list[dict]:
    """Return what each of the processes has written."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc_per_node", str(count), __file__, str(folder), sharding),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(count)]


def main() -> int:
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_language_model(folder / "model", "causal")
        for side, (count, sharding) in SIDES.items():
            results[side] = launched(folder, count, sharding)
    alone = results["one process"][0]
    rows = []
    for side, of_processes in results.items():
        differences = []
        for of_process in of_processes:
            pairs = zip(of_process["losses"], alone["losses"], strict=True)
            differences.append(max(abs(one - other) for one, other in pairs))
        difference = max(differences)
        assert difference < 1e-4, (side, difference)
        share = max(of_process["share"] for of_process in of_processes)
        seconds = max(of_process["seconds"] for of_process in of_processes)
        rows.append(
            Row(
                f"weights that a process stores: {side}",
                f"share; {1000 * seconds:.0f} CPU ms a step and process",
                share,
                0.6 if side == "two, sharded" else None,
                least=False,
                equal=f"losses to {difference:.0e}",
            )
        )
    print(table(rows))
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    if len(sys.argv) > 1:
        work(Path(sys.argv[1]), sys.argv[2])
    else:
        sys.exit(main())
