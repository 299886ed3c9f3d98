"""Combining adapters in this library against peft, mergekit, and full decompositions, side by side:
`make bench`.

Every comparison asserts that both sides give the same. The exit status is 1 when they do not,
or a target is missed.
"""

import copy
import itertools
import sys
import warnings

import numpy as np
import peft
import plain_opcm
import torch
from measure import Row, in_turn, table
from on_disk import on_disk
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from perdure import LowRank, TaskVector
from perdure.merging.scaled import Scaled
from perdure.rules.opcm import opcm
from perdure.vectors.task_vector import total

TASKS = 10
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*")  # peft asks transformers


def with_adapters(model: nn.Module, rank: int, targets: list[str]) -> peft.PeftModel:
    """peft's model with so many random LoRA adapters, alpha = rank."""
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=targets)
    wrapped = peft.PeftModel(model, config, adapter_name="0")
    for task in range(1, TASKS):
        wrapped.add_adapter(str(task), config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if ".lora_" in name:
                parameter.normal_(std=0.02)
    return wrapped


def vectors_of(wrapped: peft.PeftModel) -> list[TaskVector]:
    """The same as task vectors."""
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in wrapped.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    return [
        TaskVector(
            {
                name: LowRank(
                    layer.lora_B[str(task)].weight.data, layer.lora_A[str(task)].weight.data
                )
                for name, layer in layers.items()
            }
        )
        for task in range(TASKS)
    ]


def merged_by_peft(
    wrapped: peft.PeftModel, scales: list[float], kind: str, **settings: object
) -> None:
    """An adapter `merged`; peft returns in silence where one of that name is there already."""
    if "merged" in wrapped.peft_config:
        wrapped.delete_adapter("merged")
    names = [str(task) for task in range(TASKS)]
    wrapped.add_weighted_adapter(names, scales, "merged", combination_type=kind, **settings)


def apart(ours: Tensor, theirs: Tensor, most: float = 1e-5) -> float:
    difference = ((ours - theirs).norm() / theirs.norm()).item()
    assert difference < most, difference
    return difference


def truncated_exactly(scales: list[float], vectors: list[TaskVector], rank: int) -> Tensor:
    """The weighted sum of adapters truncated to one rank, all in float64."""
    layers = [vector["0"] for vector in vectors]
    left = torch.cat([s * layer.B.double() for s, layer in zip(scales, layers, strict=True)], 1)
    right = torch.cat([layer.A.double() for layer in layers], 0)
    Q_left, R_left = torch.linalg.qr(left)
    Q_right, R_right = torch.linalg.qr(right.T)
    U, S, V = torch.linalg.svd(R_left @ R_right.T)
    return (Q_left @ U[:, :rank] * S[:rank]) @ (V[:rank] @ Q_right.T)


def truncated(d: int, rank: int, *, least: float, times: int) -> Row:
    """Ten adapters of one layer to one of the same rank."""
    wrapped = with_adapters(nn.Sequential(nn.Linear(d, d, bias=False)), rank, ["0"])
    vectors = vectors_of(wrapped)
    scales = [0.1 * (1 + task) for task in range(TASKS)]
    sides = {
        "peft": lambda: merged_by_peft(wrapped, scales, "svd", svd_rank=rank),
        "ours": lambda: total([s * v for s, v in zip(scales, vectors, strict=True)]).truncate(rank),
    }
    seconds, results = in_turn(sides, times)
    layer = wrapped.base_model.model[0]
    with torch.no_grad():
        theirs = (
            layer.lora_B["merged"].weight @ layer.lora_A["merged"].weight * layer.scaling["merged"]
        )
    exact = truncated_exactly(scales, vectors, rank)
    ours_off = apart(results["ours"].dense("0"), exact)
    # The singular values lie close together, so that a full decomposition in float32 is off by
    # more than ours: 1.1e-5 at width 4096 on some CPUs, where ours is off by 5e-6.
    theirs_off = apart(theirs, exact, most=3e-5)
    equal = f"ΔW in float64 to {ours_off:.0e}, peft's to {theirs_off:.0e}"
    what = f"{TASKS} adapters truncated to one, d={d}, r={rank}"
    text = f"peft `svd` {1e3 * seconds['peft']:.0f} ms, ours {1e3 * seconds['ours']:.1f} ms"
    return Row(what, text, seconds["peft"] / seconds["ours"], least, equal=equal)


def truncation() -> list[Row]:
    return [truncated(1024, 8, least=50, times=5), truncated(4096, 16, least=300, times=2)]


def moved_scale() -> list[Row]:
    """The candidates of a coordinate search on a ViT-B/16: each scale moved up and down in turn."""
    torch.manual_seed(0)
    model = ViTModel(ViTConfig(), add_pooling_layer=False)
    wrapped = with_adapters(model, 10, ["q_proj", "v_proj", "query", "value"])
    vectors = vectors_of(wrapped)
    plain = copy.deepcopy(model)
    peft_layers = {name: model.get_submodule(name) for name in vectors[0].entries}
    names = [name.removeprefix("base_model.model.") for name in vectors[0].entries]
    start = [1 / TASKS] * TASKS
    candidates = [
        [scale + (move if task == other else 0) for other, scale in enumerate(start)]
        for task, move in itertools.product(range(TASKS), (0.1, -0.05))
    ]
    base = nn.ModuleDict(
        {str(i): copy.deepcopy(peft_layers[name].get_base_layer()) for i, name in enumerate(names)}
    )
    ours = [
        TaskVector({str(i): vector[name] for i, name in enumerate(names)}) for vector in vectors
    ]
    del plain

    def theirs() -> None:
        for scales in candidates:
            merged_by_peft(wrapped, scales, "cat")

    with Scaled.on(base, ours) as folded:

        def moves() -> None:
            for scales in candidates:
                folded.move([[scale] for scale in scales])

        seconds, _ = in_turn({"peft": theirs, "ours": moves}, 3)
        worst = 0.0
        for i, name in enumerate(names):
            layer = peft_layers[name]
            with torch.no_grad():
                change = (
                    layer.lora_B["merged"].weight
                    @ layer.lora_A["merged"].weight
                    * layer.scaling["merged"]
                )
            worst = max(
                worst, apart(base[str(i)].weight.data, layer.get_base_layer().weight.data + change)
            )
    each = {side: 1e3 * value / len(candidates) for side, value in seconds.items()}
    sides = f"peft `cat` {each['peft']:.1f} ms, ours {each['ours']:.1f} ms a candidate"
    what = f"one scale moved, ViT-B/16, {len(names)} layers, {TASKS} adapters, r=10"
    return [Row(what, sides, each["peft"] / each["ours"], 5.0, equal=f"weights to {worst:.0e}")]


def opcm_layers() -> list[Row]:
    """OPCM of ten LoRA models, on the four shapes of a block of ViT-B/16."""
    torch.manual_seed(0)
    shapes = {"query": (768, 768), "value": (768, 768), "fc1": (3072, 768), "fc2": (768, 3072)}
    vectors = {
        str(task): TaskVector(
            {k: LowRank(torch.randn(m, 8), torch.randn(8, n)) for k, (m, n) in shapes.items()}
        )
        for task in range(TASKS)
    }
    full = [{name: v.dense(name).numpy() for name in shapes} for v in vectors.values()]
    sides = {"full": lambda: plain_opcm.opcm(full, alpha=0.5), "ours": lambda: opcm(vectors)}
    seconds, results = in_turn(sides, 2)
    worst = max(
        apart(results["ours"].dense(name), torch.from_numpy(results["full"][name]))
        for name in shapes
    )
    text = f"full decompositions {seconds['full']:.1f} s, ours {seconds['ours']:.3f} s"
    what = f"OPCM of {TASKS} adapters, one block of ViT-B/16, r=8"
    return [Row(what, text, seconds["full"] / seconds["ours"], 10.0, equal=f"ΔW to {worst:.0e}")]


def main() -> int:
    torch.set_num_threads(1)
    rows = []
    for part in (truncation, moved_scale, opcm_layers, on_disk):
        print(f"{part.__name__} ...", file=sys.stderr, flush=True)
        rows += part()
    versions = f"torch {torch.__version__}, NumPy {np.__version__}, peft {peft.__version__}"
    print(f"\nCPU time, one thread, least of several; {versions}\n")
    print(table(rows))
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
