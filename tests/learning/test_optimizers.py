"""`training.optimizer`: LoRA-Muon against NumPy, who trains what, resuming, and what is refused."""

import numpy as np
import pytest
import torch
from pico_language import language_model
from text_tasks import uneven
from torch import nn

from perdure import Backbone, InputError, Training, learn
from perdure.learning.loop import Session
from perdure.learning.optimizers import LoRAMuon, MuonAndAdamW, inverse_root, polar
from perdure.learning.progress import check_optimizer
from perdure.learning.snapshot import Snapshot
from perdure.methods.badam import BAdam
from perdure.methods.inflora import InfLoRA
from perdure.methods.isolated import Isolated
from perdure.methods.lda import LDA
from perdure.methods.lwf import LwF
from perdure.methods.ncm import NCM
from perdure.methods.replay import Replay
from perdure.methods.sd_lora import SDLoRA
from perdure.methods.sequential import Sequential
from perdure.methods.vcl import VCL
from perdure.models import adapters

KINDS = ["sgd", "muon", "lora_muon"]


def few(optimizer, **settings):
    usual = {"epochs": 1, "batch_size": 8, "learning_rate": 0.02, "checkpoint_steps": 2}
    return Training(optimizer=optimizer, **{**usual, **settings})


# -- the mathematics of LoRA-Muon


def factors(seed=0, rank=3):
    generator = torch.Generator().manual_seed(seed)
    A = nn.Parameter(torch.randn(rank, 7, generator=generator))
    B = nn.Parameter(torch.randn(5, rank, generator=generator))
    for value in (A, B):
        value.grad = torch.randn(value.shape, generator=generator)
    return A, B


def optimizer_of(A, B, **settings):
    usual = {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.9}
    return LoRAMuon([{"params": [A, B]}], **{**usual, **settings})


def numpy_root(S):
    values, vectors = np.linalg.eigh(S)
    return vectors / np.sqrt(values) @ vectors.T


def msign(M):
    U, _, Vt = np.linalg.svd(M, full_matrices=False)
    return U @ Vt


def test_two_steps_against_numpy():
    """With W = A Bᵀ as in the paper, whose A is our B, and whose B is our Aᵀ."""
    A, B = factors()
    lr, decay, beta = 0.1, 0.5, 0.9
    optimizer = optimizer_of(A, B, lr=lr, weight_decay=decay, momentum=beta)
    left, right = B.detach().double().numpy(), A.detach().double().numpy().T
    m_left = m_right = 0.0
    assert A.grad is not None and B.grad is not None
    for _ in range(2):
        m_left = beta * m_left + (1 - beta) * B.grad.double().numpy()
        m_right = beta * m_right + (1 - beta) * A.grad.double().numpy().T
        R_left, R_right = numpy_root(left.T @ left), numpy_root(right.T @ right)
        change_of_left = -lr / 2 * msign(m_left @ R_right) @ R_right
        change_of_right = -lr / 2 * msign(m_right @ R_left) @ R_left
        s = np.sqrt(1 - decay * lr)
        left, right = s * left + change_of_left / s, s * right + change_of_right / s
        optimizer.step()
        np.testing.assert_allclose(B.detach().numpy(), left, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(A.detach().numpy(), right.T, rtol=1e-3, atol=1e-5)


def test_both_parts_of_the_change_have_equal_singular_values():
    A, B = factors()
    before_A, before_B = A.detach().clone(), B.detach().clone()
    optimizer_of(A, B, lr=0.1).step()
    for change in ((B - before_B) @ before_A, before_B @ (A - before_A)):
        singular = torch.linalg.svdvals(change.detach())[:3]
        torch.testing.assert_close(singular, torch.full((3,), 0.05), rtol=1e-3, atol=0)


def test_a_product_does_not_depend_on_how_it_is_factored():
    """B A = (B T)(T⁻¹ A): the gradients of the factors differ, the step of the product does not."""
    generator = torch.Generator().manual_seed(1)
    T = torch.eye(3) + 0.3 * torch.randn(3, 3, generator=generator)
    A, B = factors()
    of_product = torch.randn(5, 7, generator=generator)
    products = []
    for inner, outer in ((A, B), (T.inverse() @ A, B @ T)):
        one, two = nn.Parameter(inner.detach()), nn.Parameter(outer.detach())
        one.grad, two.grad = two.detach().T @ of_product, of_product @ one.detach().T
        old = two.detach() @ one.detach()
        optimizer_of(one, two, lr=1e-3).step()
        products.append((two @ one).detach() - old)
    torch.testing.assert_close(products[0], products[1], rtol=1e-2, atol=1e-6)


def test_b_begins_at_zero():
    """A waits until B is not zero; B then moves by η/2 in the space of the product."""
    A, B = factors()
    with torch.no_grad():
        B.zero_()
    assert A.grad is not None
    A.grad.zero_()  # its gradient is Bᵀ G
    before = A.detach().clone()
    optimizer = optimizer_of(A, B, lr=0.1)
    optimizer.step()
    assert torch.equal(A.detach(), before)
    singular = torch.linalg.svdvals((B @ A).detach())[:3]
    torch.testing.assert_close(singular, torch.full((3,), 0.05), rtol=1e-3, atol=0)
    A.grad = B.detach().T @ torch.ones(5, 7)
    optimizer.step()
    assert not torch.equal(A.detach(), before) and A.isfinite().all() and B.isfinite().all()


def test_no_gradient_no_step():
    A, B = factors()
    for value in (A, B):
        value.grad = torch.zeros_like(value)
    before = [A.detach().clone(), B.detach().clone()]
    optimizer_of(A, B).step()
    torch.testing.assert_close([A.detach(), B.detach()], before)


def test_roots_of_zero_and_of_low_rank():
    assert inverse_root(torch.zeros(2, 2).double()).tolist() == [[0, 0], [0, 0]]
    root = inverse_root(torch.diag(torch.tensor([4.0, 1.0]).double()))
    torch.testing.assert_close(
        root, torch.diag(torch.tensor([0.5, 1.0])).double(), rtol=1e-5, atol=0
    )
    of_rank_one = torch.tensor([[3.0, 0.0], [4.0, 0.0]]).double()
    torch.testing.assert_close(polar(of_rank_one), of_rank_one / 5)
    assert polar(torch.zeros(3, 2).double()).abs().max() == 0


@pytest.mark.parametrize("rank_of_gradient", [1, 2, 4])
def test_a_gradient_of_low_rank(rank_of_gradient):
    """B is singular then, up to rounding, and A must not follow the rounding errors."""
    generator = torch.Generator().manual_seed(0)
    A = nn.Parameter(torch.randn(8, 64, generator=generator))
    B = nn.Parameter(torch.zeros(32, 8))
    start = A.detach().norm().item()
    optimizer = optimizer_of(A, B, lr=0.02)
    for _ in range(5):
        left = torch.randn(32, rank_of_gradient, generator=generator)
        of_product = left @ torch.randn(rank_of_gradient, 64, generator=generator)
        A.grad, B.grad = B.detach().T @ of_product, of_product @ A.detach().T
        optimizer.step()
        assert A.detach().norm().item() < 3 * start


def test_a_nearly_singular_factor_is_singular():
    """Its small singular value is 1e-5 of the largest in one case, and 1e-3 in the other."""
    assert inverse_root(torch.diag(torch.tensor([1.0, 1e-10]).double()))[1, 1] == 0
    root = inverse_root(torch.diag(torch.tensor([1.0, 1e-6]).double()))[1, 1].item()
    assert root == pytest.approx((1e-6 + 1e-6) ** -0.5)


# -- who trains what


def trained(kind, bert, toy, **settings):
    """The optimizer that a task ends with."""
    held = []

    class Watched(Sequential):
        def end(self, backbone, task, optimizer):
            held.append(optimizer)

    learn(bert, [toy[0]], Watched(rank=2, **settings), few(kind))
    return held[0]


def test_muon_trains_matrices_and_adamw_the_rest(bert, toy):
    optimizer = trained("muon", bert, toy, peft="full")
    muon, adamw = optimizer.optimizers
    assert type(muon) is torch.optim.Muon and type(adamw) is torch.optim.AdamW
    assert muon.param_groups[0]["adjust_lr_fn"] == "match_rms_adamw"
    matrices, others, heads = (group["params"] for group in optimizer.param_groups)
    module = adapters.trainable(bert.model)
    names = {id(value): name for name, value in module.items()}
    in_muon = {names[id(value)] for value in matrices}
    assert in_muon == {
        name for name, value in module.items() if value.ndim == 2 and "embeddings" not in name
    }
    assert {names[id(value)] for value in others} == module.keys() - in_muon
    assert heads == list(bert.own("fruit").parameters())
    assert [group["lr"] for group in optimizer.param_groups] == [
        group["lr"] for part in optimizer.optimizers for group in part.param_groups
    ]


def test_lora_muon_takes_the_factors_in_pairs(bert, toy):
    optimizer = trained("lora_muon", bert, toy)
    assert isinstance(optimizer, MuonAndAdamW)
    pairs = [value for pair in adapters.factors(bert.model).values() for value in pair]
    assert list(map(id, optimizer.param_groups[0]["params"])) == list(map(id, pairs))


def test_sgd_has_momentum(bert, toy):
    optimizer = trained("sgd", bert, toy)
    assert type(optimizer) is torch.optim.SGD and optimizer.param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_falls(kind, bert, toy):
    losses = []
    session = Session(log=lambda event: losses.append(event["loss"]))
    training = few(kind, epochs=6, learning_rate=0.05)
    learn(bert, [toy[0]], Isolated(rank=2), training, session=session)
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


@pytest.mark.parametrize("kind", KINDS)
def test_a_language_model(kind):
    adapter = learn(language_model("llama"), [uneven("one")], Sequential(rank=2), few(kind))
    changed = [not torch.equal(value, adapter.start[n]) for n, value in adapter.parameters.items()]
    assert all(changed) and all(value.isfinite().all() for value in adapter.parameters.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_goes_on_with_the_same_bytes(kind, pico, toy, tmp_path):
    whole = Backbone.load(pico("bert"), pooling="mean")
    path = tmp_path / "unfinished.safetensors"

    def keep(snapshot):
        if not path.exists():
            snapshot.save(path)

    training = few(kind, epochs=2)
    session = Session(keep=keep)
    expected = learn(whole, [toy[0]], Sequential(rank=2), training, session=session)
    again = Backbone.load(pico("bert"), pooling="mean")
    snapshot = Snapshot.load(path)
    assert snapshot.about["step"] == 2
    session = Session(resume=snapshot)
    adapter = learn(again, [toy[0]], Sequential(rank=2), training, session=session)
    assert adapters.same(adapter.parameters, expected.parameters)
    assert adapters.same(again.own_state("fruit"), whole.own_state("fruit"))


def test_adamw_is_the_usual_one(pico, toy):
    results = []
    for kind in (None, "adamw"):
        backbone = Backbone.load(pico("bert"))
        results.append(learn(backbone, [toy[0]], Isolated(rank=2), few(kind)).parameters)
    assert adapters.same(*results)


@pytest.mark.parametrize("kind", ["muon", "lora_muon"])
def test_a_module_that_stays_as_it_is(kind, bert, toy):
    """With `adapt: first`, later tasks have a module, but train nothing."""
    method = LDA(adapt="first", adapt_rank=2)
    learn(bert, [toy[0]], method, few(kind))
    before = adapters.read(bert.model)
    learn(bert, toy.tasks[:2], method, few(kind))
    assert adapters.same(adapters.read(bert.model), before)


def test_old_heads_have_the_rate_of_heads_with_lora_muon(bert, toy):
    """LwF trains them; a singular value of B A would be no rate for AdamW."""
    rates = {}

    class Noted(LwF):
        def optimizer(self, groups, training, *, examples):
            rates.update({id(one): group["lr"] for group in groups for one in group["params"]})
            return super().optimizer(groups, training, examples=examples)

    learn(bert, [toy[0]], LwF(rank=2), few("lora_muon"))
    # The class that is tested brings no optimizer of its own, although it looks at the groups.
    Noted.brings_optimizer = False
    learn(bert, toy.tasks[:2], Noted(rank=2), few("lora_muon", head_learning_rate=0.3))
    assert {rates[id(one)] for one in bert.own("fruit").parameters()} == {0.3}
    assert {rates[id(one)] for one in adapters.trainable(bert.model).values()} == {0.02}


# -- what is refused


def test_an_old_torch_has_no_muon(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(InputError, match="`optimizer: muon` needs torch 2.9 or newer"):
        check_optimizer(Sequential(), few("muon"))
    check_optimizer(Sequential(), few("lora_muon"))


@pytest.mark.parametrize("method", [BAdam(), VCL(), Replay(method=BAdam())])
def test_a_method_with_its_own_optimizer(method, bert, toy):
    with pytest.raises(InputError, match="is `muon`, but the method `(badam|vcl)` brings its own"):
        learn(bert, [toy[0]], method, few("muon"))
    check_optimizer(method, few(None))


def test_lora_muon_needs_both_factors(bert, toy):
    with pytest.raises(InputError, match="has the module full: use `peft: lora`"):
        check_optimizer(Isolated(peft="full"), few("lora_muon"))
    with pytest.raises(InputError, match="trains only one of them: use `optimizer: muon`"):
        learn(bert, [toy[0]], InfLoRA(rank=2), few("lora_muon"))
    with pytest.raises(InputError, match="`sd_lora` keeps what earlier tasks trained of them"):
        check_optimizer(Replay(method=SDLoRA()), few("lora_muon"))
    check_optimizer(SDLoRA(), few("muon"))
    check_optimizer(NCM(), few("lora_muon"))  # nothing is trained, so nothing is chosen


@pytest.mark.parametrize("decay", [50.0, 60.0])
def test_lora_muon_needs_something_left_of_the_factors(decay, bert, toy):
    with pytest.raises(InputError, match=f"less than 1, but is 0.02 · {decay:g}: lower one"):
        learn(bert, [toy[0]], Sequential(rank=2), few("lora_muon", weight_decay=decay))
    check_optimizer(Sequential(rank=2), few("lora_muon", weight_decay=49.0))
