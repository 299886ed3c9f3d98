"""Subspaces of layers' inputs: against the plain version in `bench/`, direct decompositions,
and values by hand.
"""

import plain_inflora as plain
import pytest
import torch
import transformers
from inputs import covariances

from perdure import Backbone
from perdure.checks.models import tokenizer
from perdure.methods.parts.subspace import Subspace
from perdure.models.inputs import input_covariances

FEW = {"power": 1.2, "cut": 3.0}  # a few directions have almost all energy: M stays small
MANY = {"power": 0.5, "cut": 1.0}  # M soon has more than half of the dimensions
D = 160


def epsilons(tasks: int) -> list[float]:
    return [0.95 + 0.05 * task / tasks for task in range(tasks)]


def spaces(tasks: int, spectrum: dict[str, float], d: int = D, **options):
    """M before each task, the covariance of the task's inputs, and M after it."""
    space = Subspace.empty(d)
    for C, epsilon in zip(covariances(d, tasks, **spectrum), epsilons(tasks), strict=True):
        before, space = space, space.grown(C, epsilon, **options)
        yield before, C, space


def projector(vectors) -> torch.Tensor:
    return torch.as_tensor(vectors @ vectors.T)


def taken(space: Subspace) -> torch.Tensor:
    """M Mᵀ."""
    return torch.eye(len(space.basis)) - space.outside(
        torch.eye(len(space.basis), dtype=torch.double)
    )


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    assert left.shape == right.shape
    return (left - right).abs().max().item() if left.numel() else 0.0


def orthonormal(vectors: torch.Tensor) -> bool:
    return (
        vectors.is_contiguous()
        and distance(vectors.T @ vectors, torch.eye(vectors.shape[1])) < 1e-12
    )


# -- against the plain version


@pytest.mark.parametrize(("spectrum", "switches"), [(FEW, False), (MANY, True)])
def test_equal_to_the_published_procedure(spectrum, switches):
    memory, kinds = None, set()
    for (before, C, after), epsilon in zip(spaces(10, spectrum), epsilons(10), strict=True):
        rows = plain.design(memory, C.numpy(), 10)
        memory = plain.update(memory, C.numpy(), epsilon)
        assert distance(projector(before.directions(C, 10)), projector(rows.T)) < 1e-8
        assert after.dimension == memory.dimension and after.complement == (memory.kind == "retain")
        assert distance(projector(after.basis), projector(memory.basis)) < 1e-8
        kinds.add(memory.kind)
    assert kinds == ({"remove", "retain"} if switches else {"remove"})


@pytest.mark.parametrize("spectrum", [FEW, MANY])
def test_bases_stay_orthonormal_through_50_tasks(spectrum):
    for _, _, after in spaces(50, spectrum, d=64):
        assert orthonormal(after.basis)
    assert after.dimension > 10


@pytest.mark.parametrize("spectrum", [FEW, MANY])
@pytest.mark.parametrize("energy", ["covariance", "features"])
def test_directions_lie_outside(spectrum, energy):
    for before, C, _ in spaces(8, spectrum, energy=energy):
        rows = before.directions(C, 10, energy)
        assert distance(rows.T @ rows, torch.eye(rows.shape[1])) < 1e-12
        assert distance(taken(before) @ rows, 0 * rows) < 1e-10
        random = before.random_directions(10, torch.Generator().manual_seed(0))
        assert (
            random.shape[1] == min(10, before.free)
            and distance(taken(before) @ random, 0 * random) < 1e-10
        )


def test_the_switch_to_the_complement_keeps_the_projector():
    axes = torch.linalg.qr(
        torch.randn(40, 40, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    )[0]
    space, held = Subspace.empty(40), 0
    for found in (19, 5, 9):  # of 40 dimensions: 19, then 24, then 33
        part = axes[:, held : held + found] * torch.linspace(1, 2, found, dtype=torch.double)
        # a little more than all energy: whether rounding reaches all of it depends on the processor
        space, held = space.grown(part @ part.T, 1.0 + 1e-9), held + found
        assert (
            space.dimension == held and space.complement == (held > 20) and orthonormal(space.basis)
        )
        assert distance(taken(space), projector(axes[:, :held])) < 1e-10


# -- what is taken, by hand


def diagonal(*values: float) -> torch.Tensor:
    return torch.diag(torch.tensor(values, dtype=torch.double))


def test_of_the_first_task_one_direction_fewer_is_taken():
    C = diagonal(2, 1.1, 1, 0.9)  # energies 4, 1.21, 1, .81 of 7.02: together .570, .742, .885, 1
    first = {
        epsilon: Subspace.empty(4).grown(C, epsilon).dimension for epsilon in (0.1, 0.6, 0.8, 0.9)
    }
    assert first == {0.1: 1, 0.6: 1, 0.8: 2, 0.9: 3}
    other = Subspace.empty(5).grown(diagonal(0, 0, 0, 0, 1), 0.9)
    C = diagonal(2, 1.1, 1, 0.9, 0)
    later = {epsilon: other.grown(C, epsilon).dimension - 1 for epsilon in (0.1, 0.6, 0.8, 0.9)}
    assert later == {0.1: 1, 0.6: 2, 0.8: 3, 0.9: 4}


def test_what_is_held_already_counts():
    space = Subspace.empty(3).grown(diagonal(3, 0, 0), 0.9)
    assert space.grown(diagonal(3, 1, 1), 0.8).dimension == 1  # 9 of 11
    assert space.grown(diagonal(3, 1, 1), 0.85).dimension == 2  # 10 of 11 are needed
    assert (
        space.grown(diagonal(3, 1, 1), 0.85, energy="features").dimension == 3
    )  # 3 and 4 of 5 do not do


def test_balance_weighs_a_direction_against_its_room():
    C = diagonal(
        4, 2, 1, 1
    )  # shares of energy 16, 4, 1, 1 of 22; of features 4, 2, 1, 1 of 8; room 1 / 4
    covariance = {
        balance: Subspace.empty(4).grown(C, 0.1, balance=balance).dimension
        for balance in (0.3, 1, 2, 6)
    }
    assert covariance == {0.3: 0, 1: 1, 2: 2, 6: 4}
    features = [
        Subspace.empty(4).grown(C, 0.1, balance=b, energy="features").dimension
        for b in (0.4, 0.9, 1.5, 2.1)
    ]
    assert features == [0, 1, 2, 4]


def test_features_are_decomposed_themselves():
    random = torch.Generator().manual_seed(0)
    space = Subspace.empty(48)
    for epsilon in (0.6, 0.7, 0.8, 0.9):
        scale = torch.linspace(1, 0.1, 48, dtype=torch.double)[torch.randperm(48, generator=random)]
        H = scale[:, None] * torch.randn(48, 300, dtype=torch.double, generator=random)
        U, S, _ = torch.linalg.svd(H - taken(space) @ H)
        rows = space.directions(H @ H.T / 300, 6, "features")
        assert distance(projector(rows), projector(U[:, :6])) < 1e-8
        held = 1 - S.square().sum() / H.square().sum()
        share = torch.cat([held[None], held + S.square().cumsum(0) / H.square().sum()])
        count = int((share < epsilon).sum()) - (space.dimension == 0)
        expected = taken(space) + projector(U[:, :count])
        space = space.grown(H @ H.T / 300, epsilon, energy="features")
        assert distance(taken(space), expected) < 1e-8
    assert space.complement


# -- limits


@pytest.mark.parametrize("energy", ["covariance", "features"])
def test_noise_is_no_direction(energy):
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    constant = x.expand(1000, 64)
    C = (constant.T @ constant / 1000).double()  # in single precision, as covariances are added up
    space = Subspace.empty(64)
    assert space.directions(C, 10, energy).shape == (64, 1)
    space = space.grown(C, 1.0, energy=energy)
    assert space.dimension == 1 and distance(taken(space) @ x.double(), x.double()) < 1e-5
    assert (
        space.directions(C, 10, energy).shape == (64, 0)
        and space.grown(C, 1.0, energy=energy).dimension == 1
    )
    nothing = torch.zeros(64, 64, dtype=torch.double)
    assert (
        space.directions(nothing, 10, energy).shape == (64, 0)
        and space.grown(nothing, 0.9).dimension == 1
    )


@pytest.mark.parametrize("energy", ["covariance", "features"])
def test_a_full_space_has_no_directions_and_stays_full(energy):
    C = covariances(12, 1, power=0.5, cut=1.0)[0]
    assert Subspace.empty(12).directions(C, 20, energy).shape == (12, 12)
    space = Subspace.empty(12).grown(C, 0.5, energy=energy).grown(C, 1.0, energy=energy)
    for _ in range(2):
        assert space.dimension == 12 and space.free == 0 and space.complement
        assert space.directions(C, 5, energy).shape == (12, 0)
        assert space.random_directions(5, torch.Generator()).shape == (12, 0)
        assert not space.outside(C).any()
        space = space.grown(C, 1.0, energy=energy)
    assert space.grown(C, 0.9, energy=energy, balance=5.0).dimension == 12


def test_bitwise_repeatable():
    def run():
        return [after.basis for _, _, after in spaces(6, MANY)]

    assert all(torch.equal(left, right) for left, right in zip(run(), run(), strict=True))


# -- what goes into layers


def projections(backbone: Backbone) -> list[str]:
    ends = ("query", "key", "value", "query_proj", "key_proj", "value_proj")
    return [name for name, _ in backbone.model.named_modules() if name.endswith(ends)]


def hidden_states(backbone: Backbone, texts: list[str]) -> list[list[torch.Tensor]]:
    """The input of each block, of each text alone: there is no padding."""
    found = []
    with torch.no_grad():
        for text in texts:
            inputs = backbone.processor(text, return_tensors="pt", truncation=True, max_length=16)
            found.append(
                [
                    state[0].double()
                    for state in backbone.model(**inputs, output_hidden_states=True).hidden_states
                ]
            )
    return found


def mean_of_products(parts: list[torch.Tensor]) -> torch.Tensor:
    rows = torch.cat(parts)
    return rows.T @ rows / len(rows)


TEXTS = [
    "w1 w2 w3",
    "w4",
    "w5 w6 w7 w8 w9 w10",
    "w11 w12",
] * 20  # of several lengths, in more than one batch


def encoded(backbone: Backbone, texts: list[str]):
    from datasets import Dataset

    from perdure import Task

    rows = Dataset.from_dict({"text": texts, "label": [0] * len(texts)})
    return backbone.encode(
        Task("some", ("one", "two"), train=rows, validation=rows, test=rows).rows("train")
    )


@pytest.mark.parametrize("limit", [None, 30])
def test_covariances_of_inputs_are_those_of_hidden_states(bert, limit):
    names = projections(bert)
    found = input_covariances(bert, encoded(bert, TEXTS), names, limit=limit)
    assert [set(group) for group in found] == [
        set(names[:3]),
        set(names[3:]),
    ]  # the three of a block read the same
    drawn = torch.randperm(len(TEXTS), generator=torch.Generator().manual_seed(0))[:limit].tolist()
    states = hidden_states(bert, [TEXTS[i] for i in drawn])
    for block, C in enumerate(found.values()):
        assert C.dtype == torch.double
        assert distance(C, mean_of_products([state[block] for state in states])) < 1e-5
    assert not any(module._forward_pre_hooks for module in bert.model.modules())


@pytest.fixture
def deberta(tmp_path) -> Backbone:
    """DeBERTa as its checkpoints are: query and key project relative positions too."""
    relative = {
        "relative_attention": True,
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 8,
    }
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    torch.manual_seed(7)
    config = transformers.DebertaV2Config(
        vocab_size=64,
        max_relative_positions=16,
        pad_token_id=0,
        norm_rel_ebd="layer_norm",
        **sizes,
        **relative,
    )
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    return Backbone.load(tmp_path, pooling="mean", max_length=16)


def test_layers_that_also_read_something_else_have_a_covariance_of_their_own(deberta):
    """One batch: the relative positions, which a change of the key projection acts on as well,
    are rows like tokens.
    """
    names, texts = projections(deberta), TEXTS[:12]
    found = input_covariances(deberta, encoded(deberta, texts), names)
    ends = [[name.split(".")[-1] for name in group] for group in found]
    assert ends == [["query_proj", "key_proj"], ["value_proj"]] * 2
    states = hidden_states(deberta, texts)
    encoder = next(
        module for module in deberta.model.modules() if hasattr(module, "get_rel_embedding")
    )
    positions = encoder.get_rel_embedding().detach().double()
    assert len(positions) == 16
    for i, C in enumerate(found.values()):
        rows = [state[i // 2] for state in states] + [positions] * (i % 2 == 0)
        assert distance(C, mean_of_products(rows)) < 1e-5


def test_balance_counts_each_of_many_equal_directions():
    """More of them than a block of the Krylov space has: only a whole decomposition is sure to find
    them all.
    """
    values = torch.cat(
        [torch.ones(20), 0.1 * torch.rand(280, generator=torch.Generator().manual_seed(0))]
    ).double()
    Q = torch.linalg.qr(torch.randn(300, 300, generator=torch.Generator().manual_seed(1)).double())[
        0
    ]
    assert Subspace.empty(300).grown((Q * values) @ Q.T, 0.9, balance=0.1).dimension == 20
