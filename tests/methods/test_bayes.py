"""BGD and BAdam: μ and σ on a quadratic against NumPy, the passes, what carries over from task to
task, and what is refused.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

from perdure import InputError, Recipe, Training, TrainingError, learn
from perdure.learning import loop
from perdure.learning.loop import Session
from perdure.learning.progress import Course
from perdure.methods.badam import BAdam, Moments
from perdure.methods.bgd import BGD, Descent
from perdure.methods.parts.bayes_optimizer import BayesOptimizer, Sigmas
from perdure.methods.sequential import Sequential
from perdure.models import adapters

METHODS = [BGD, BAdam]
H, GOAL = np.array([0.2, 1.0, 5.0, -0.02]), np.array([1.0, -2.0, 0.5, 0.0])
K, EXAMPLES, RATE = 3, 4, 0.02
FEW = Training(epochs=2, batch_size=8, learning_rate=0.01)


def sigmas(**changes) -> Sigmas:
    values = {"initial": 0.05, "power": 2, "normalise": True, "minimum": None, "maximum": None}
    return Sigmas(**(values | changes))


def optimizer_of(kind: type, theta: nn.Parameter, settings: Sigmas) -> BayesOptimizer:
    betas = {"beta1": 0.9, "beta2": 0.999} if kind is Moments else {}
    return kind([{"params": [theta], "lr": RATE}], settings, examples=EXAMPLES, **betas)


def take_step(optimizer: BayesOptimizer, theta: nn.Parameter, number: int) -> None:
    """Minimise Σ h / 2 · (θ − goal)², a mean over examples."""
    h, goal = torch.tensor(H), torch.tensor(GOAL)
    for index in range(K):
        with optimizer.sampled(100 * number + index):
            loss = (h / 2 * (theta - goal).square()).sum() / K
            loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def plain(adam: bool, settings: Sigmas, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The published formulas, in NumPy."""
    mu, sigma = np.zeros(4), np.full(4, settings.initial)
    m, v = np.zeros(4), np.zeros(4)
    unit = settings.initial if settings.normalise else 1.0
    for t in range(1, steps + 1):
        g_mean, product_mean = np.zeros(4), np.zeros(4)
        for index in range(K):
            random = torch.Generator().manual_seed(100 * (t - 1) + index)
            epsilon = torch.empty(4).double().normal_(generator=random).numpy()
            g = EXAMPLES * H * (mu + sigma * epsilon - GOAL)
            g_mean += g / K
            product_mean += g * epsilon / K
        step = g_mean
        if adam:
            m = 0.9 * m + 0.1 * g_mean
            v = 0.999 * v + 0.001 * g_mean**2
            step = math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-10)
        mu = mu - RATE * (sigma / unit) ** settings.power * step
        sigma = sigma * np.sqrt(1 + (sigma * product_mean / 2) ** 2) - sigma**2 * product_mean / 2
        sigma = np.clip(sigma, settings.minimum or 0, settings.maximum or np.inf)
    return mu, sigma


@pytest.mark.parametrize("kind", [Descent, Moments])
@pytest.mark.parametrize(
    "settings",
    [
        sigmas(),
        sigmas(normalise=False),
        sigmas(power=1),
        sigmas(minimum=0.03, maximum=0.051),
    ],
    ids=["normalised", "published", "power-1", "bounded"],
)
def test_200_steps_on_a_quadratic_are_those_of_numpy(kind, settings):
    theta = nn.Parameter(torch.zeros(4).double())
    optimizer = optimizer_of(kind, theta, settings)
    for number in range(200):
        take_step(optimizer, theta, number)
    mu, sigma = plain(kind is Moments, settings, 200)
    np.testing.assert_allclose(theta.detach().numpy(), mu, rtol=1e-9)
    np.testing.assert_allclose(optimizer.state[theta]["sigma"].numpy(), sigma, rtol=1e-9)
    if settings == sigmas():  # certainty grows with the curvature, and falls where it is negative
        assert sigma[2] < sigma[1] < sigma[0] < settings.initial < sigma[3]
    assert optimizer.state[theta]["step"] == 200


def test_sigma_becomes_one_over_the_root_of_the_sum_of_curvatures():
    theta = nn.Parameter(torch.zeros(4).double())
    optimizer = optimizer_of(Descent, theta, sigmas())
    for number in range(2000):
        take_step(optimizer, theta, number)
    precision = 1 / 0.05**2 + 2000 * EXAMPLES * H[:3]
    found = optimizer.state[theta]["sigma"][:3].numpy()
    np.testing.assert_allclose(found, precision**-0.5, rtol=0.1)


def test_the_parameters_are_the_means_outside_of_a_pass():
    theta = nn.Parameter(torch.randn(4).double())
    optimizer, before = optimizer_of(Descent, theta, sigmas()), theta.detach().clone()
    with optimizer.sampled(0):
        assert not torch.equal(theta, before)
        sample = theta.detach().clone()
        theta.sum().backward()
    assert torch.equal(theta, before)
    with pytest.raises(KeyboardInterrupt), optimizer.sampled(0):
        assert torch.equal(theta, sample)
        raise KeyboardInterrupt
    assert torch.equal(theta, before)
    assert torch.equal(theta.grad, torch.ones(4).double())  # the first pass is not lost


def test_a_large_curvature_does_not_make_sigma_zero():
    theta = nn.Parameter(torch.zeros(1))
    optimizer = optimizer_of(Descent, theta, sigmas())
    with optimizer.sampled(0):
        sample = theta.item()
        (5e9 * theta.square()).sum().backward()
    optimizer.step()
    a = EXAMPLES * 1e10 * sample * (sample / 0.05) * 0.05 / 2
    assert optimizer.state[theta]["sigma"].item() == pytest.approx(0.05 / (2 * a), rel=1e-4)


def test_a_diverging_sigma_is_an_error_that_names_the_setting():
    theta = nn.Parameter(torch.zeros(1))
    optimizer = optimizer_of(Descent, theta, sigmas())
    with pytest.raises(TrainingError, match=r"σ .* diverged: .*0.05 at first.* `max_sigma`"):
        for seed in range(2):
            with optimizer.sampled(seed):
                (-1e6 * theta.square()).sum().backward()
            optimizer.step()
    theta = nn.Parameter(torch.zeros(1))
    optimizer = optimizer_of(Descent, theta, sigmas(maximum=0.1))
    with optimizer.sampled(0):
        (-1e6 * theta.square()).sum().backward()
    optimizer.step()
    assert optimizer.state[theta]["sigma"].item() == pytest.approx(0.1)
    with pytest.raises(TrainingError, match="diverged: it is nan"):
        with optimizer.sampled(0):
            (theta * float("nan")).sum().backward()
        optimizer.step()


# -- in the loop


@pytest.mark.parametrize("kind", METHODS)
def test_a_step_makes_k_passes_with_different_samples(kind, bert, toy):
    method, seen = kind(rank=2, samples=3), []
    loss, update = method.loss, method.update
    of_module = []

    def counted(backbone, batch):
        seen[-1] += 1
        of_module.append(next(iter(adapters.trainable(bert.model).values())).detach().clone())
        return loss(backbone, batch)

    def at_the_end(backbone, step):
        update(backbone, step)
        seen.append(0)

    method.loss, method.update = counted, at_the_end
    seen.append(0)
    events = []
    training = Training(epochs=1, batch_size=8, gradient_accumulation=2, learning_rate=0.01)
    loop.learn(bert, toy.tasks[:1], method, training, session=Session(log=events.append))
    # Two batches make a step; both are read with the same three samples.
    assert seen[:-1][0] == 6
    assert all(map(torch.equal, of_module[:3], of_module[3:6]))
    assert not torch.equal(of_module[0], of_module[1])
    assert not torch.equal(of_module[0], of_module[6])
    assert {event["learning_rate"] for event in events} == {0.01}  # no schedule


def test_other_methods_make_one_pass_and_follow_the_schedule(bert, toy):
    method = Sequential(rank=2)
    assert method.passes == 1
    events = []
    loop.learn(bert, toy.tasks[:1], method, FEW, session=Session(log=events.append))
    assert len({event["learning_rate"] for event in events}) > 3


@pytest.mark.parametrize("kind", METHODS)
def test_sigma_and_moments_go_on_across_tasks_and_a_new_head_starts_anew(kind, bert, toy):
    method = kind(rank=2, samples=2)
    learn(bert, toy.tasks[:1], method, FEW)
    module = next(iter(adapters.trainable(bert.model)))
    names = [name for name in method.state if name.startswith("sigma/")]
    [name] = [name for name in names if name.endswith(module)]
    before = {key: value for key, value in method.state.items() if key != "steps"}
    steps = method.state["steps"]
    course = begun(bert, toy.tasks[:2], method)
    state = course.optimizer.state
    [mean] = [p for n, p in adapters.trainable(bert.model).items() if n == module]
    assert torch.equal(state[mean]["sigma"], before[name])
    assert state[mean]["step"] == steps
    head = bert.own(toy[1].name).weight
    assert torch.all(state[head]["sigma"] == method.initial_sigma)
    assert state[head]["step"] == 0
    if kind is BAdam:
        assert torch.equal(state[mean]["m"], before[name.replace("sigma/", "m/")])
    assert method.state["steps"] == steps


def begun(backbone, seen, method) -> Course:
    """The training of the last task, which has begun."""
    torch.manual_seed(0)
    backbone.open(seen[-1])
    method.begin(backbone, seen[-1])
    return Course(backbone, seen, method, FEW, seed=0)


@pytest.mark.parametrize("kind", METHODS)
def test_hidden_boundaries_give_the_same_numbers(kind, pico, toy):
    """One head; the loop announces two tasks in one case, and only the first in the other."""
    from perdure import Backbone

    results = []
    for announced in (True, False):
        backbone = Backbone.load(pico("bert"), pooling="mean")
        method = kind(rank=2, samples=2)
        course = begun(backbone, toy.tasks[:1], method)
        for number in range(8):
            if number == 4 and announced:
                method.end(backbone, toy[0], course.optimizer)
                backbone.share(toy[1].name)
                torch.manual_seed(0)
                method.begin(backbone, toy[1])
                groups = course.optimizer.param_groups
                kept = [{"params": group["params"], "lr": group["lr"]} for group in groups]
                course.optimizer = method.optimizer(kept, FEW, examples=30)
            assert course.rows
            batch = course.rows.batch(range(8 * (number % 3), 8 * (number % 3) + 8))
            for _ in range(method.passes):
                with method.around(course.optimizer):
                    (method.loss(backbone, batch) / method.passes).backward()
            method.update(backbone, course.take_step)
            course.optimizer.zero_grad()
        means = course.parameters
        results.append([*means, *(course.optimizer.state[mean]["sigma"] for mean in means)])
    assert all(map(torch.equal, *results))
    assert results[0][-1].unique().numel() > 1


@pytest.mark.parametrize("kind", METHODS)
def test_the_state_of_a_removed_head_is_dropped_and_a_shared_head_keeps_its_own(kind, bert, toy):
    method = kind(rank=2, samples=1)
    shared = Training(epochs=1, batch_size=8, heads="shared")
    learn(bert, toy.tasks[:1], method, shared)
    [first] = heads_in(method)
    old = method.state[first].clone()
    bert.share(toy[1].name)
    torch.manual_seed(0)
    method.begin(bert, toy[1])
    groups = [{"params": list(bert.own(toy[1].name).parameters()), "lr": 0.1}]
    optimizer = method.optimizer(groups, shared, examples=30)
    assert torch.equal(optimizer.state[bert.own(toy[1].name).weight]["sigma"], old)
    method.end(bert, toy[1], optimizer)
    # Under the name of the last task only.
    [name] = [name for name in method.state if name.startswith("sigma/_heads") and "weight" in name]
    assert name != first
    # The task is forgotten and learned again: its head is new.
    bert.open(toy[1])
    method.begin(bert, toy[1])
    assert name not in method.state


def heads_in(method) -> list[str]:
    return [key for key in method.state if key.startswith("sigma/_heads") and "weight" in key]


def test_weight_decay_is_not_applied_and_the_number_of_examples_is_that_of_a_step(bert, toy):
    method = BGD(rank=2)
    bert.open(toy[0])
    method.begin(bert, toy[0])
    training = Training(batch_size=8, gradient_accumulation=3)
    for examples, expected in ((100, 24), (10, 10)):
        groups = [{"params": list(adapters.trainable(bert.model).values()), "lr": 0.1}]
        [group] = method.optimizer(groups, training, examples=examples).param_groups
        assert (group["examples"], "weight_decay" in group) == (expected, False)


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "`samples` is 0"),
        ({"initial_sigma": 0.0}, "`initial_sigma` is 0.0"),
        ({"initial_sigma": float("nan")}, "`initial_sigma` is nan"),
    ],
)
def test_no_pass_and_no_variance_are_refused(kind, settings, message):
    with pytest.raises(InputError, match=message):
        kind(**settings)


@pytest.mark.parametrize(
    "settings", [{"samples": 0}, {"initial_sigma": 0}, {"max_sigma": 0.5}, {"sigma_power": 3}]
)
def test_a_recipe_with_bad_settings_is_refused(settings):
    [name] = settings
    values = {"stream": "demo", "backbone": "minilm", "method": {"name": "badam", **settings}}
    with pytest.raises(InputError, match=name):
        Recipe.parse(values).make_method()
