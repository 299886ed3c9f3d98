"""Task arithmetic in both spaces, by hand and against dense sums; what is applied is taken back,
bit for bit.
"""

import peft
import pytest
import torch
from torch import tensor

from perdure import (
    Adapter,
    Backbone,
    BackboneError,
    Combined,
    InputError,
    LowRank,
    Rule,
    TaskVector,
    combine,
    task_vectors,
)
from perdure.methods.isolated import Isolated
from perdure.models import adapters
from perdure.models.examples import Batch

LORA = peft.LoraConfig(r=1, lora_alpha=2, target_modules=["w"])  # scale 2


def lora(
    name: str, A: list, B: list, start: tuple[list, list] = ([[1.0, 0.0]], [[0.0], [0.0]])
) -> Adapter:
    def parameters(a, b):
        return {"w.lora_A.weight": tensor(a), "w.lora_B.weight": tensor(b)}

    return Adapter(name, LORA, parameters(*start), parameters(A, B))


@pytest.fixture
def two() -> list[Adapter]:
    """ΔW₁ = 2 [1 0]ᵀ[1 1] and ΔW₂ = 2 [0 1]ᵀ[1 0], from the start A = [1 0], B = 0."""
    return [lora("a", [[1.0, 1.0]], [[1.0], [0.0]]), lora("b", [[1.0, 0.0]], [[0.0], [1.0]])]


def test_delta_space_by_hand(two):
    combined = combine(two, Rule(scale=0.5))
    assert combined.vectors.dense("w").tolist() == [[1.0, 1.0], [1.0, 0.0]]


def test_factor_space_by_hand_has_cross_terms(two):
    """tau_A = [0 1] and [0 0], tau_B = [1 0]ᵀ and [0 1]ᵀ; at 0.5: A = [1 .5], B = [.5 .5]ᵀ,
    so ΔW = 2 B A.
    """
    combined = combine(two, Rule(scale=0.5, space="factor"))
    assert combined.vectors.dense("w.lora_A.weight").tolist() == [[0.0, 0.5]]
    assert combined.vectors.dense("w.lora_B.weight").tolist() == [[0.5], [0.5]]
    start = combined.origin.start
    A, B = (
        start[f"w.lora_{x}.weight"] + combined.vectors.dense(f"w.lora_{x}.weight") for x in "AB"
    )
    assert (2 * B @ A).tolist() == [[1.0, 0.5], [1.0, 0.5]]  # delta space: [[1, 1], [1, 0]]


def test_since_start_leaves_out_what_was_there_before(two):
    """The second module started from the first: its whole ΔW is 2 [1 1]ᵀ[1 1],
    of which 2 [1 0]ᵀ[1 1] is old.
    """
    later = lora("b", [[1.0, 1.0]], [[1.0], [1.0]], start=([[1.0, 1.0]], [[1.0], [0.0]]))
    whole = task_vectors([two[0], later])["b"]
    own = task_vectors([two[0], later], since="start")["b"]
    assert whole.dense("w").tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert own.dense("w").tolist() == [[0.0, 0.0], [2.0, 2.0]]
    factor = task_vectors([two[0], later], space="factor", since="start")["b"]
    assert factor.dense("w.lora_B.weight").tolist() == [[0.0], [1.0]]


def test_sum_of_low_rank_equals_the_dense_sum():
    torch.manual_seed(0)
    vectors = [
        TaskVector({"w": LowRank(torch.randn(30, 4), torch.randn(4, 20))}) for _ in range(10)
    ]
    total = sum((0.1 * v for v in vectors[1:]), 0.1 * vectors[0])
    dense = sum(0.1 * v["w"].B @ v["w"].A for v in vectors)
    torch.testing.assert_close(total.dense("w"), dense, rtol=0, atol=1e-6)
    assert total["w"].B.shape == (30, 40)


def learned(bert, toy, kind: str) -> list[Adapter]:
    found = []
    for seed, task in enumerate(toy):
        torch.manual_seed(0)
        Isolated(peft=kind, rank=2).attach(bert)
        start = adapters.read(bert.model)
        torch.manual_seed(seed)
        parameters = {k: v + 0.3 * torch.randn_like(v) for k, v in start.items()}
        found.append(Adapter(task.name, adapters.config_of(bert.model), start, parameters))
    return found


def test_delta_space_on_a_model_is_the_dense_sum(bert, toy):
    found = learned(bert, toy, "lora")
    combined = combine(found, Rule(scale=0.4))
    name = "encoder.layer.0.attention.self.query"
    before = adapters.base_layer(bert.model, name).weight.clone()
    changes = []
    for adapter in found:
        adapters.write(bert.model, adapter.parameters)
        layer = next(module for key, module in bert.model.named_modules() if key == name)
        changes.append(layer.get_delta_weight("default"))
    with combined.applied(bert):
        after = adapters.base_layer(bert.model, name).weight
        torch.testing.assert_close(after, before + 0.4 * sum(changes), rtol=0, atol=1e-6)
    assert torch.equal(adapters.base_layer(bert.model, name).weight, before)


@pytest.mark.parametrize("kind", ["lora", "bottleneck"])
def test_factor_space_on_a_model_is_the_sum_of_parameters(kind, bert, toy):
    found = learned(bert, toy, kind)
    combined = combine(found, Rule(scale=0.4, space="factor"))
    before = adapters.read(bert.model)
    with combined.applied(bert):
        for name, value in adapters.read(bert.model).items():
            start = found[0].start[name]
            torch.testing.assert_close(
                value, start + 0.4 * sum(a.parameters[name] - start for a in found)
            )
    assert adapters.same(adapters.read(bert.model), before)


@pytest.mark.parametrize("space", ["delta", "factor"])
@pytest.mark.parametrize("hold", [True, False])
def test_what_is_applied_is_taken_back(space, hold, bert, toy):
    combined = combine(learned(bert, toy, "lora"), Rule(space=space))
    if not hold:
        adapters.detach(bert.model)
    before = {name: value.clone() for name, value in bert.state_dict().items()}
    with pytest.raises(KeyError), combined.applied(bert):
        assert (
            any(
                not torch.equal(value, before[name])
                for name, value in bert.state_dict().items()
                if name in before
            )
            or not hold
        )
        raise KeyError
    after = bert.state_dict()
    assert before.keys() == after.keys() and all(
        torch.equal(after[name], before[name]) for name in before
    )


def test_one_task_at_scale_one_is_the_adapter_itself(bert, toy):
    found = learned(bert, toy, "lora")
    bert.eval()
    batch = Batch(dict(bert.processor(["w1 w2"], return_tensors="pt")))
    adapters.write(bert.model, found[1].parameters)
    with torch.no_grad():
        own = bert(batch)
        for space in ("delta", "factor"):
            with combine(found[1:2], Rule(scale=1.0, space=space)).applied(bert):
                torch.testing.assert_close(bert(batch), own, rtol=0, atol=1e-5)


def test_scales(two):
    assert combine(two, Rule(scale="1/n")).vectors.dense("w").tolist() == [
        [1.0, 1.0],
        [1.0, 0.0],
    ]
    root = combine(two, Rule(scale="1/sqrt(n)")).vectors
    torch.testing.assert_close(root.dense("w"), 2**-0.5 * tensor([[2.0, 2.0], [2.0, 0.0]]))


def test_errors(two, bert, toy, pico):
    with pytest.raises(
        InputError, match="must be a number, a mapping by task, or one of .*got `1/x`"
    ):
        combine(two, Rule(scale="1/x"))
    with pytest.raises(InputError, match="needs validation data"):
        combine(two, Rule(scale="search"))
    with pytest.raises(
        InputError, match="No rule named `task_arithmetics`. Did you mean `task_arithmetic`?"
    ):
        combine(two, Rule(name="task_arithmetics"))
    with pytest.raises(BackboneError, match="combine it with `space: factor`"):
        combine(learned(bert, toy, "bottleneck"), Rule())
    with pytest.raises(InputError, match="different models or spaces"):
        _ = TaskVector({"w": tensor([1.0])}) + TaskVector(
            {"w": LowRank(torch.ones(1, 1), torch.ones(1, 1))}
        )
    with (
        pytest.raises(BackboneError, match="has no layer `w`"),
        combine(two, Rule()).applied(Backbone.load(pico("bert"))),
    ):
        pass
    assert Combined({"a": TaskVector({})}).routed
