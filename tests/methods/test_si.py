"""SI: the path integral and the importance on a quadratic, where they are known;
the penalty against autograd.
"""

import pytest
import torch
from small_runs import OPTIMIZER
from torch import nn

from perdure import Training, learn
from perdure.methods.parts import anchor
from perdure.methods.si import SI
from perdure.models import adapters
from perdure.models.encoder import Encoder
from perdure.models.examples import Batch

H, GOAL = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([1.0, -2.0, 0.5]).double()
FEW = Training(epochs=2, batch_size=8, learning_rate=0.01)


class Quadratic(Encoder):
    """L = Σ h / 2 · (θ − goal)², in the place of a transformer and its task."""

    def __init__(self):
        nn.Module.__init__(self)
        self.model = nn.Module()
        self.model.w, self.model.peft_config = (
            nn.ParameterDict({"default": nn.Parameter(0 * GOAL)}),
            {},
        )
        self.goal = GOAL

    @property
    def theta(self) -> nn.Parameter:
        return self.model.w["default"]

    def losses(self, batch=None, hidden=None) -> torch.Tensor:
        return (H / 2 * (self.theta - self.goal).square()).sum()[None]


@pytest.fixture
def quadratic():
    return Quadratic()


def descend(method, quadratic, rate, steps, clip=float("inf")):
    """Plain SGD; returns what −Σ g Δθ is, with g of the task's own loss."""
    path, theta = torch.zeros(3).double(), quadratic.theta

    def step():
        nn.utils.clip_grad_norm_([theta], clip)
        theta.data -= rate * theta.grad

    for _ in range(steps):
        theta.grad = torch.autograd.grad(method.loss(quadratic, Batch({})), theta)[0]
        before, own = theta.detach().clone(), H * (theta.detach() - quadratic.goal)
        method.update(quadratic, step)
        path -= own * (theta.detach() - before)
    return path


def test_the_path_integral_is_how_far_each_parameter_lowered_the_loss(quadratic, toy):
    method, rate, steps = SI(), 1e-3, 400
    method.begin(quadratic, toy[0])
    descend(method, quadratic, rate, steps)
    left = (1 - rate * H) ** (2 * steps)  # of each coordinate's loss
    w = method.state["path/w.default"]
    torch.testing.assert_close(
        w, rate * (H * GOAL).square() * (1 - left) / (1 - (1 - rate * H).square())
    )
    assert w.sum().item() == pytest.approx(
        (H / 2 * GOAL.square() * (1 - left)).sum().item(), rel=5e-3
    )


def test_importance_by_hand(quadratic, toy):
    """Ω = max(w, 0) / (Δ² + ξ); the last coordinate goes uphill."""
    method = SI(damping=0.3)
    method.begin(quadratic, toy[0])
    descend(method, quadratic, torch.tensor([0.1, 0.1, -0.01]), 1)
    delta = torch.tensor([0.1, -0.8, -0.045]).double()  # −rate · h · (0 − goal)
    torch.testing.assert_close(quadratic.theta.detach(), delta)
    torch.testing.assert_close(
        method.state["path/w.default"], torch.tensor([0.1, 6.4, -0.2025]).double()
    )
    method.end(quadratic, toy[0], OPTIMIZER)
    omega = torch.tensor([0.1 / 0.31, 6.4 / 0.94, 0.0]).double()
    torch.testing.assert_close(method.state["importance/w.default"], omega)
    torch.testing.assert_close(method.state["anchor/w.default"], delta)
    assert set(method.state) == {"importance/w.default", "anchor/w.default"}


@pytest.mark.parametrize("clip", [float("inf"), 0.5])
def test_neither_the_penalty_nor_clipping_counts_in_the_path(clip, quadratic, toy):
    method = SI(strength=3.0)
    method.begin(quadratic, toy[0])
    descend(method, quadratic, 0.01, 50)
    method.end(quadratic, toy[0], OPTIMIZER)
    first = method.state["importance/w.default"]
    quadratic.goal = -GOAL
    method.begin(quadratic, toy[1])
    path, start = descend(method, quadratic, 0.01, 50, clip), method.state["start/w.default"]
    assert anchor.penalty(adapters.trainable(quadratic.model), method.state) > 0.01
    torch.testing.assert_close(method.state["path/w.default"], path)
    method.end(quadratic, toy[1], OPTIMIZER)
    moved = (quadratic.theta.detach() - start).square()
    torch.testing.assert_close(
        method.state["importance/w.default"], first + path.clamp_min(0) / (moved + 0.1)
    )


def test_the_gradient_is_that_of_the_penalty():
    random = torch.Generator().manual_seed(0)
    parameters = {
        name: torch.randn(3, 4, generator=random, requires_grad=True) for name in ("a", "b", "new")
    }
    held = [f"{part}/{name}" for part in ("importance", "anchor") for name in ("a", "b")]
    state = {name: torch.rand(3, 4, generator=random) for name in held}
    expected = torch.autograd.grad(
        anchor.penalty(parameters, state), [parameters["a"], parameters["b"]]
    )
    found = anchor.gradient(parameters, state)
    assert set(found) == {"a", "b"}  # nothing is held of the other
    for one, two in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(one, two)


def test_a_strong_penalty_holds_the_module(bert, toy):
    def moved(strength: float) -> float:
        method = SI(rank=2, strength=strength)
        learn(bert, [toy[0]], method, FEW)
        assert all(
            value.max() > 0
            for name, value in method.state.items()
            if name.startswith("importance/")
        )
        adapter = learn(bert, [toy[0], toy[1]], method, FEW)
        return sum(
            (adapter.parameters[name] - adapter.start[name]).square().sum().item()
            for name in adapter.start
        )

    assert moved(1e6) < 0.5 * moved(0.0)
