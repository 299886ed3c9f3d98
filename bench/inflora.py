"""InfLoRA in this library against the procedure as published, side by side: `make bench`.

Every comparison asserts that both sides give the same. The exit status is 1 when they do not,
or a target is missed.
"""

import sys

import numpy as np
import plain_inflora as plain
import torch
from inputs import covariances
from measure import Row, in_turn, table, temporary_bytes
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from perdure.merging.combine import folded
from perdure.methods.parts.subspace import Subspace
from perdure.models import adapter_targets, adapters, inputs
from perdure.models.examples import Batch
from perdure.vectors.task_vector import LowRank, TaskVector, total

D, BLOCKS, TASKS, RANK = 768, 12, 5, 10
CONFIG = {
    "num_hidden_layers": 1,
    "hidden_size": D,
    "num_attention_heads": 12,
    "intermediate_size": 4 * D,
}


# -- DualGPM and design


def torch_svd(X: plain.Matrix) -> tuple[plain.Matrix, plain.Matrix, plain.Matrix]:
    U, S, V = torch.linalg.svd(torch.from_numpy(X), full_matrices=False)
    return U.numpy(), S.numpy(), V.numpy()


SIDES = {
    "NumPy, float64": (np.float64, plain.thin_svd),
    "NumPy, float32 as published": (np.float32, plain.thin_svd),
    "with torch's SVD, float32": (np.float32, torch_svd),
}
"""Kinds of the plain side: NumPy's and torch's libraries for linear algebra are not equally fast.
"""


def dual_gpm() -> list[Row]:
    """All design and all DualGPM of a run: 12 layers, 5 tasks, ε from .95 towards 1."""
    seconds, worst = dict.fromkeys(["ours", *SIDES], 0.0), dict.fromkeys(SIDES, 0.0)
    for block in range(BLOCKS):
        power = 1.3 - 0.6 * block / (BLOCKS - 1)
        ours = Subspace.empty(D)
        memories: dict[str, plain.Memory | None] = dict.fromkeys(SIDES)
        for task, C in enumerate(covariances(D, TASKS, power=power, cut=3.0, seed=block)):
            epsilon = 0.95 + 0.05 * task / TASKS
            found = one_task(ours, memories, C, epsilon)
            for name, value in found[0].items():
                seconds[name] += value
            rows, ours = found[1].pop("ours")
            for name, (B, memory) in found[1].items():
                memories[name] = memory
                worst[name] = max(
                    worst[name], apart(rows.numpy(), B.T), apart(ours.basis.numpy(), memory.basis)
                )
        print(f"  block {block}: of {D} dimensions {ours.dimension} are taken", file=sys.stderr)
    assert worst["NumPy, float64"] < 1e-8 and max(worst.values()) < 1e-3, worst
    return [
        Row(
            f"DualGPM and design, {BLOCKS} layers of {D}, {TASKS} tasks",
            f"plain ({name}) {seconds[name]:.1f} s, ours (float64) {seconds['ours']:.1f} s",
            seconds[name] / seconds["ours"],
            None if kind[1] is torch_svd else 5.0,
            equal=f"projectors to {worst[name]:.0e}",
        )
        for name, kind in SIDES.items()
    ]


def one_task(ours: Subspace, memories: dict[str, plain.Memory | None], C: Tensor, epsilon: float):
    """Seconds and results of all sides for one layer and task: the designed rows,
    and the new subspace.
    """

    def plain_side(name: str):
        memory, (dtype, svd) = memories[name], SIDES[name]
        X = C.numpy().astype(dtype)
        return lambda: (plain.design(memory, X, RANK, svd), plain.update(memory, X, epsilon, svd))

    sides = {name: plain_side(name) for name in SIDES}
    return in_turn(
        {"ours": lambda: (ours.directions(C, RANK), ours.grown(C, epsilon)), **sides}, times=2
    )


def apart(left: plain.Matrix, right: plain.Matrix) -> float:
    """The largest difference of the projectors onto two spaces, given by orthonormal bases."""
    if left.shape != right.shape:
        return float("inf")
    return float(np.abs(left @ left.T - right @ right.T).max())


# -- forward pass and training step


def random_branches(layers: list[str], tasks: int) -> list[TaskVector]:
    """Task vectors of InfLoRA's form: orthonormal rows of B_t, scaled, and small A_t."""
    found = []
    for _ in range(tasks):
        rows = torch.linalg.qr(torch.randn(D, RANK))[0].T / 3**0.5  # key and value share them
        found.append(
            TaskVector({name: LowRank(0.01 * torch.randn(D, RANK), rows) for name in layers})
        )
    return found


def vit(blocks: int) -> tuple[ViTModel, list[str]]:
    """ViT-B/16 of so many blocks with random weights, and the names of its key and value layers."""
    torch.manual_seed(0)
    model = ViTModel(
        ViTConfig(**{**CONFIG, "num_hidden_layers": blocks}), add_pooling_layer=False
    ).eval()
    return model, [f"layers.{i}.attention.{kind}_proj" for i in range(blocks) for kind in "kv"]


def put_in(model: ViTModel, newest: TaskVector) -> None:
    """The library's LoRA on key and value, with the newest task's factors."""
    targets = adapter_targets.key_value(model)
    config = adapter_targets.configure(
        model, "lora", rank=RANK, alpha=RANK, dropout=0.0, target_modules=targets
    )
    adapters.attach(model, config)
    for name, (A, B) in adapters.factors(model).items():
        A.data, B.data = newest.entries[name].A.clone(), newest.entries[name].B.clone()
    model.requires_grad_(False)


@torch.no_grad()
def block_forward(tasks: int = 20) -> list[Row]:
    """One image through one block as it acts at test time,
    the branches of all tasks kept apart or folded in.
    """
    model, (key, value) = vit(1)
    vectors = random_branches([key, value], tasks)
    both = [(vector.entries[key], vector.entries[value]) for vector in vectors]
    dense = plain.Block(
        model.layers[0], CONFIG["num_attention_heads"], [(k.B, k.A, v.B, v.A) for k, v in both]
    )
    x = torch.randn(1, 197, D)
    with folded(model, total(vectors)):
        seconds, results = in_turn(
            {"plain": lambda: dense(x), "ours": lambda: model.layers[0](x)}, times=40
        )
    difference = (results["plain"] - results["ours"]).abs().max().item()
    unlike = (model.layers[0](x) - results["ours"]).abs().max().item()
    assert difference < 1e-5 < 1e-2 * unlike, (difference, unlike)  # the branches do act
    sides = f"plain {1000 * seconds['plain']:.0f} ms, ours {1000 * seconds['ours']:.0f} ms"
    ratio = seconds["plain"] / seconds["ours"]
    return [
        Row(
            f"block forward, T={tasks}, B=1",
            sides,
            ratio,
            2.5,
            equal=f"outputs to {difference:.0e}",
        )
    ]


def training_step(tasks: int = 20) -> list[Row]:
    """A step on two blocks at the last of so many tasks, against one at the first:
    it should cost the same.
    """
    images, labels = torch.randn(2, 3, 224, 224), torch.tensor([1, 2])

    def stepper(model: ViTModel, newest: TaskVector):
        put_in(model, newest)
        head = nn.Linear(D, 10)
        trained = [B.requires_grad_(True) for _, B in adapters.factors(model).values()]
        optimizer = torch.optim.AdamW([*trained, *head.parameters()], lr=1e-4)

        def step() -> None:
            features = model(images).last_hidden_state[:, 0]
            nn.functional.cross_entropy(head(features), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    (first, names), (last, _) = vit(2), vit(2)
    vectors = random_branches(names, tasks)
    sides = {"first": stepper(first, vectors[0]), "last": stepper(last, vectors[-1])}
    with folded(
        last, total(vectors[:-1])
    ):  # once per task in `learn`, so it is not a part of the step
        least, _ = in_turn(sides, times=20)
    described = (
        f"ours T={tasks} {1000 * least['last']:.0f} ms, ours T=1 {1000 * least['first']:.0f} ms"
    )
    return [
        Row(
            "training step, 2 blocks, B=2",
            described,
            least["last"] / least["first"],
            1.05,
            least=False,
        )
    ]


# -- statistics


class OneLayer(nn.Module):
    """As much of a backbone as `input_covariances` asks for: a layer that does nothing:
    only statistics cost.
    """

    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict({"key": nn.Identity()})
        self.device = torch.device("cpu")

    def forward(self, batch: Batch) -> Tensor:
        return self.model["key"](batch.inputs["x"])


class OneBatch:
    """As much of encoded examples."""

    def __init__(self, x: Tensor):
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def batches(self, rows: list[int], device: torch.device):
        yield rows, self.batch(rows, device)

    def batch(self, rows: list[int], device: torch.device) -> Batch:
        # All of them as they are: an index would copy what the memory is measured of.
        return Batch({"x": self.x if len(rows) == len(self) else self.x[: len(rows)]})


@torch.no_grad()
def statistics_memory(batch: int = 128) -> list[Row]:
    """Temporaries of the covariance of one layer's inputs, for the published batch size."""
    torch.manual_seed(0)
    x = torch.randn(batch, 197, D) * torch.linspace(0.1, 1, D)
    theirs, expected = temporary_bytes(lambda: plain.covariance([x]))
    ours, got = temporary_bytes(lambda: inputs.input_covariances(OneLayer(), OneBatch(x), ["key"]))
    difference = (got[("key",)] - expected).abs().max().item() / expected.abs().max().item()
    assert difference < 1e-5, difference
    sides = f"plain {theirs / 2**20:.0f} MiB, ours {ours / 2**20:.1f} MiB"
    equal = f"covariances to {difference:.0e}"
    return [
        Row(f"temporary memory of statistics, B={batch}", sides, theirs / ours, 30.0, equal=equal)
    ]


def main() -> int:
    torch.set_num_threads(1)
    rows = []
    for part in (statistics_memory, block_forward, training_step, dual_gpm):
        print(f"{part.__name__} ...", file=sys.stderr, flush=True)
        rows += part()
    print(
        f"\nCPU time, one thread, least of several; torch {torch.__version__}, "
        f"NumPy {np.__version__}\n"
    )
    print(table(rows))
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
