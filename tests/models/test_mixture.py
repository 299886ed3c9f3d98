"""Mixtures of experts against plain NumPy and peft's mixed batches;
nothing that is given is changed.
"""

import copy

import numpy as np
import peft
import pytest
import torch
from conftest import write_adapter
from safetensors.torch import save_file
from torch import nn

from perdure import (
    Adapter,
    CheckpointError,
    InputError,
    LowRank,
    Rule,
    TaskVector,
    UnknownName,
    combine,
)
from perdure.evaluation.score import features, settled
from perdure.evaluation.system import Learned, System
from perdure.methods.isolated import Isolated
from perdure.models import adapters
from perdure.models.mixture import Mixture, remove
from perdure.rules.smile import smile
from perdure.vectors.statistics import Statistics


def expert(seed: int, out: int = 6, width: int = 5, rank: int = 3, layers: str = "0") -> TaskVector:
    random = torch.Generator().manual_seed(seed)
    return TaskVector(
        {
            name: LowRank(
                torch.randn(out, rank, generator=random), torch.randn(rank, width, generator=random)
            )
            for name in layers
        }
    )


def plain(
    x: np.ndarray,
    W: np.ndarray,
    b: np.ndarray,
    deltas: list[np.ndarray],
    *,
    gate: int,
    k: int,
    top: int,
):
    """SMILE for one token, by full decompositions: the published formula."""
    decomposed = [np.linalg.svd(delta) for delta in deltas]
    r = np.array([np.linalg.norm(Vh[:gate] @ x) for _, _, Vh in decomposed])
    p = np.exp(r) / np.exp(r).sum()
    best = np.argsort(-p)[:top]
    y = W @ x + b
    for t in best:
        U, S, Vh = decomposed[t]
        y = y + p[t] / p[best].sum() * U[:, :k] @ np.diag(S[:k]) @ Vh[:k] @ x
    return y


@pytest.mark.parametrize("experts", [1, 4])
@pytest.mark.parametrize(("top", "gate", "k"), [(1, 1, 2), (2, 2, 1), (3, 3, 3)])
def test_smile_is_the_published_formula(experts, top, gate, k):
    torch.manual_seed(0)
    vectors = {str(seed): expert(seed) for seed in range(experts)}
    model = nn.Sequential(nn.Linear(5, 6))
    x = 2 * torch.randn(2, 7, 5)
    W, b = (value.detach().numpy() for value in (model[0].weight, model[0].bias))
    deltas = [vector.dense("0").numpy() for vector in vectors.values()]
    expected = [
        [plain(token, W, b, deltas, gate=gate, k=k, top=top) for token in row] for row in x.numpy()
    ]
    with smile(vectors, top_k=top, gate_rank=gate, expert_rank=k).inserted(model), torch.no_grad():
        found = model(x)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_nothing_given_is_changed_and_the_model_is_put_back():
    vectors = {"a": expert(0), "b": expert(1)}
    model = nn.Sequential(nn.Linear(5, 6))
    state, before, layer = copy.deepcopy(model.state_dict()), copy.deepcopy(vectors), model[0]
    with pytest.raises(KeyError), smile(vectors).inserted(model):
        model(torch.randn(3, 5))
        assert model[0] is not layer
        raise KeyError
    assert model[0] is layer and all(
        torch.equal(value, state[name]) for name, value in model.state_dict().items()
    )
    for task, vector in vectors.items():
        assert torch.equal(vector["0"].B, before[task]["0"].B) and torch.equal(
            vector["0"].A, before[task]["0"].A
        )


def test_an_expert_more_and_one_less():
    both = smile({"a": expert(0), "b": expert(1)}, gate_rank=2)
    model, x = nn.Sequential(nn.Linear(5, 6)), torch.randn(9, 5)
    with torch.no_grad():
        with both.inserted(model):
            expected = model(x)
        with smile({"a": expert(0)}, gate_rank=2).with_expert("b", expert(1)).inserted(model):
            assert torch.equal(model(x), expected)
        with both.with_expert("c", expert(2)).without_expert("c").inserted(model):
            assert torch.equal(model(x), expected)
        with both.without_expert("b").inserted(model):
            torch.testing.assert_close(
                model(x), model[0].base(x) + x @ expert(0).dense("0").T, rtol=0, atol=1e-5
            )
    with pytest.raises(UnknownName, match="No expert named `c`"):
        both.without_expert("c")


def test_files(tmp_path):
    mixture = smile(
        {"a b": expert(0, layers="02"), "ü/.b": expert(1, layers="2")}, gate_rank=2, top_k=2
    )
    model, x = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 5), nn.Linear(5, 6)), torch.randn(9, 5)
    found = Mixture.load(mixture.save(tmp_path / "m"))
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [
        "mixture.json",
        "mixture.safetensors",
    ]
    assert list(found.experts) == ["a b", "ü/.b"] and (found.gate_rank, found.top_k) == (2, 2)
    with torch.no_grad():
        with mixture.inserted(model):
            expected = model(x)
        found.insert(model)
        assert torch.equal(model(x), expected)
        remove(model)
        assert not torch.equal(model(x), expected)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda about, file: about.unlink(), "mixture.json` cannot be read"),
        (lambda about, file: about.write_text("{"), "mixture.json` is not JSON"),
        (lambda about, file: about.write_text("{}"), "does not name its `experts`"),
        (
            lambda about, file: about.write_text('{"experts": ["a"], "depth": 1}'),
            "has an unknown setting",
        ),
        (lambda about, file: about.write_text('{"experts": []}'), "belongs to no expert"),
        (lambda about, file: file.write_bytes(file.read_bytes()[:-4]), "mixture.safetensors` has"),
        (lambda about, file: save_file({"0.w.A": torch.ones(1, 2)}, file), "lacks its B"),
        (
            lambda about, file: save_file(
                {"0.w.A": torch.ones(1, 2), "0.w.B": torch.ones(2, 3)}, file
            ),
            "not a product",
        ),
        (
            lambda about, file: save_file(
                {"0.w.A": torch.ones(1, 2) / 0, "0.w.B": torch.ones(2, 1)}, file
            ),
            "finite",
        ),
    ],
)
def test_damaged_files(damage, message, tmp_path):
    smile({"a": expert(0)}).save(tmp_path)
    damage(tmp_path / "mixture.json", tmp_path / "mixture.safetensors")
    with pytest.raises(CheckpointError, match=message):
        Mixture.load(tmp_path)


@pytest.mark.parametrize("setting", ["top_k", "gate_rank", "expert_rank"])
def test_settings_must_be_at_least_one(setting):
    with pytest.raises(InputError, match=f"`{setting}` of .* at least 1, got 0"):
        smile({"a": expert(0)}, **{setting: 0})


def test_full_changes_are_no_experts():
    with pytest.raises(InputError, match="The change of `w` by `a` is not low-rank"):
        Mixture({"a": TaskVector({"w": torch.zeros(2, 2)})})


# -- routed by the task posterior


def learned(bert, toy) -> list[Adapter]:
    found = []
    for seed, task in enumerate(toy):
        torch.manual_seed(seed)
        Isolated(rank=2 + seed).attach(bert)
        start = adapters.read(bert.model)
        parameters = {name: value + 0.3 * torch.randn_like(value) for name, value in start.items()}
        found.append(Adapter(task.name, adapters.config_of(bert.model), start, parameters))
    return found


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # peft asks for it
def test_a_mixed_batch_is_that_of_peft(bert, toy, tmp_path):
    """peft's own path for batches of several adapters, on the same folders."""
    found = learned(bert, toy)
    for adapter in found:
        write_adapter(tmp_path / adapter.name / "adapter", adapter, base="", head=None)
    adapters.detach(bert.model)
    bert.eval()
    examples = bert.encode([*toy[0].rows("test"), *toy[1].rows("test")])
    picked = [["fruit", "colour", "shape"][i % 3] for i in range(len(examples))]
    ours = features(bert, combine(found, Rule(name="routed")), examples, picked=picked)
    model = copy.deepcopy(bert.model)
    mixed = peft.PeftModel.from_pretrained(
        model, tmp_path / "fruit" / "adapter", adapter_name="fruit"
    )
    for name in ("colour", "shape"):
        mixed.load_adapter(tmp_path / name / "adapter", adapter_name=name)
    mixed.eval()
    for rows, batch in examples.batches():
        with torch.no_grad():
            states = mixed(
                **batch.inputs, adapter_names=[picked[row] for row in rows]
            ).last_hidden_state
        mask = batch.inputs["attention_mask"][..., None]
        torch.testing.assert_close(
            ours[rows], (states * mask).sum(1) / mask.sum(1), rtol=0, atol=1e-5
        )


def test_each_example_is_read_by_the_adapter_of_its_likeliest_task(bert, toy):
    found = learned(bert, toy)
    routed = system_of(bert, toy, found, "routed")
    oracle = routed.with_rule(Rule(name="oracle"))
    for task in toy:
        every = routed.answer(task).scores()
        assert every["given"] == oracle.answer(task).scores()["given"]
        assert every["none"] == oracle.answer(task).scores()["none"]
        assert (
            every["posterior"] == routed.answer(task, "test", ["posterior"]).scores()["posterior"]
        )


def system_of(bert, toy, adapters, rule):
    """A system of these adapters, with random statistics."""
    learned = []
    for i, (task, adapter) in enumerate(zip(toy, adapters, strict=True)):
        bert.open(task)
        values = torch.randn(8, bert.width, generator=torch.manual_seed(i))
        statistics = Statistics.of(values, torch.arange(8) % 2, len(task.classes))
        learned.append(Learned(task.classes, adapter, {}, statistics, {}, {}))
    return System(bert, tuple(learned), Rule(name=rule))


def test_one_pass_for_the_posterior_alone(bert, toy, monkeypatch):
    found = learned(bert, toy)
    system = system_of(bert, toy, found, "routed")
    log_weights = torch.tensor([[0.7, 0.1, 0.2]]).log()
    monkeypatch.setattr(
        System, "_log_weights", lambda self, rows, tasks: log_weights.repeat(len(rows), 1)
    )
    passes = []
    plain = type(bert).forward
    monkeypatch.setattr(
        type(bert), "forward", lambda self, batch: passes.append(1) or plain(self, batch)
    )
    system.answer(toy.task("colour"), "test", ["posterior"]).scores()
    batches = len(passes)
    system.answer(toy.task("colour")).scores()
    assert len(passes) - batches == 3 * batches  # one for each task


def test_a_task_without_an_expert_is_read_by_the_model_as_it_was(bert, toy):
    found = learned(bert, toy)
    examples = bert.encode(toy[0].rows("test"))
    adapters.detach(bert.model)
    for rule in ("routed", "oracle"):
        combined = combine(found, Rule(name=rule))
        plain = features(bert, combine(found, Rule(scale=0.0)), examples)
        torch.testing.assert_close(
            features(bert, combined, examples, task="new"), plain, rtol=0, atol=0
        )


def test_settled():
    assert settled(torch.tensor([[0.2, 0.8], [0.6, 0.4]]).log()).exp().tolist() == [
        [0.0, 1.0],
        [1.0, 0.0],
    ]


def test_an_expert_that_leaves_a_layer_alone_gets_no_share_of_it():
    """Not by arbitrary singular vectors of a zero, nor by a gate of 0 in the softmax."""
    untrained = TaskVector({"0": LowRank(torch.zeros(6, 3), torch.randn(3, 5))})
    elsewhere = TaskVector({"1": LowRank(torch.randn(5, 1), torch.randn(1, 6))})
    model, x = nn.Sequential(nn.Linear(5, 6)), 0.01 * torch.randn(9, 5)
    expected = model(x) + x @ expert(0).dense("0").T
    for other in (untrained, TaskVector({})):
        with smile({"a": expert(0), "b": other}, top_k=2, gate_rank=3).inserted(model):
            torch.testing.assert_close(model(x), expected)
    layer = model[0]
    with smile({"b": untrained}).inserted(model):
        assert model[0] is layer
    both = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 5))
    with smile({"a": expert(0), "c": elsewhere}).inserted(both):
        assert both(x).isfinite().all()


def test_the_gate_reads_no_directions_of_rounding():
    """Factors of rank 3 whose product has rank 1: three unit rows, of which two mean nothing."""
    thin = LowRank(torch.ones(6, 3), torch.tensor([[1.0, 0, 0, 0, 0]]).expand(3, 5))
    mixture = smile({"a": TaskVector({"0": thin}), "b": expert(1)}, gate_rank=3)
    A, _ = mixture._stacked("0")
    torch.testing.assert_close(A[0].norm(dim=1), torch.tensor([1.0, 0, 0]))


def test_a_mixture_with_shared_factors_is_saved(tmp_path):
    mixture = smile({"a": expert(0), "b": 2.0 * expert(0)})
    assert torch.equal(
        Mixture.load(mixture.save(tmp_path / "m")).experts["b"].dense("0"),
        2.0 * expert(0).dense("0"),
    )
