"""VCL and TD-VCL: the Gaussian, its divergence and its samples by hand; the weights of TD(λ) and
the past posteriors; what is left of both with n = 1; coresets and replay.
"""

import pytest
import torch
from small_runs import small
from torch import nn
from torch.distributions import Normal as Reference
from torch.distributions import kl_divergence

from perdure import Backbone, InputError, RunError, Training, learn
from perdure.checks import method as checks
from perdure.checks.models import save_language_model, text_stream
from perdure.checks.subject import MethodUnderTest
from perdure.data.exemplars import Exemplars
from perdure.learning.loop import Session
from perdure.learning.loop import learn as learn_in
from perdure.methods.parts.gaussian import MeanField, Normal, Site, adapter_sites
from perdure.methods.parts.posteriors import Posteriors
from perdure.methods.replay import Replay
from perdure.methods.td_vcl import TDVCL, terms
from perdure.methods.vcl import VCL
from perdure.models import adapters

FEW = Training(epochs=1, batch_size=8, learning_rate=0.01)


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(5, 3)


def field_of(layer: nn.Linear, log_sigma: float = -1.0) -> MeanField:
    sites = {key: Site(layer, key) for key in ("weight", "bias")}
    log_sigmas = {
        key: torch.full_like(site.value, log_sigma) + 0.1 * torch.rand_like(site.value)
        for key, site in sites.items()
    }
    return MeanField(sites, log_sigmas)


# -- the Gaussian


def test_the_divergence_is_that_of_torch(layer):
    field = field_of(layer)
    prior = Normal(
        {name: value + torch.randn_like(value) for name, value in field.means.items()},
        {name: torch.randn_like(value) for name, value in field.means.items()},
    )
    expected = sum(
        kl_divergence(
            Reference(field.means[name], field.log_sigmas[name].exp()),
            Reference(prior.mean[name], prior.log_sigma[name].exp()),
        ).sum()
        for name in field.means
    )
    torch.testing.assert_close(field.divergence(prior), expected)
    assert field.divergence(field.normal()).item() == 0.0


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 5)])
@pytest.mark.parametrize("sampling", ["examples", "weights"])
def test_outputs_have_the_mean_and_covariance_of_the_gaussian(sampling, shape, layer):
    field, x = field_of(layer), torch.randn(*shape)
    outputs = []
    for seed in range(4000):
        with field.sampled(sampling, seed), torch.no_grad():
            outputs.append(layer(x))
    outputs = torch.stack(outputs).flatten(1, -2)  # samples, positions, outputs
    torch.testing.assert_close(outputs.mean(0), layer(x).flatten(0, -2), atol=0.06, rtol=0)
    centred, x = outputs - outputs.mean(0), x.flatten(0, -2)
    covariance = torch.einsum("sio,sjo->oij", centred, centred) / len(outputs)
    variances = {name: (2 * value).exp() for name, value in field.log_sigmas.items()}
    expected = torch.einsum("id,od,jd->oij", x, variances["weight"], x)
    expected = expected + variances["bias"][:, None, None]
    if sampling == "examples":  # those of different examples are independent
        example = torch.arange(len(x)) // (len(x) // 2)
        expected = expected * (example[:, None] == example)
    torch.testing.assert_close(covariance, expected, atol=0.06, rtol=0.1)


@pytest.mark.parametrize("sampling", ["examples", "weights"])
def test_gradients_reach_means_and_sigmas_and_all_is_put_back(sampling, layer):
    field, weight = field_of(layer), layer.weight
    x = torch.zeros(4, 5)  # the root of a variance has no slope at zero
    x[1:] = torch.randn(3, 5)
    with field.sampled(sampling, 0):
        loss = layer(x).square().sum()
        gradients = torch.autograd.grad(loss, [*field.means.values(), *field.log_sigmas.values()])
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients)
    plain = nn.functional.linear(x, weight, layer.bias)
    assert layer.weight is weight and torch.equal(layer(x), plain)


def test_the_slope_of_log_sigma(layer):
    """E (w x)² = (μ x)² + σ² x², whose derivative by log σ is 2 σ² x²."""
    field, x = field_of(layer, -0.5), torch.randn(1, 5)
    log_sigma = field.log_sigmas["weight"]
    for copies in (x.expand(20_000, 5), x.expand(20_000, 1, 5)):
        with field.sampled("examples", 0):
            loss = layer(copies).square().sum() / len(copies)
        (slope,) = torch.autograd.grad(loss, log_sigma)
        expected = 2 * (2 * log_sigma).exp() * x.square()
        torch.testing.assert_close(slope, expected.detach(), atol=0.05, rtol=0.1)


# -- the weights of the objectives


@pytest.mark.parametrize("lambda_", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_weights_of_td_are_a_mean_of_targets(n, lambda_):
    """TD(k) has the likelihoods of the last k tasks and the posterior before them."""
    shares = torch.tensor([lambda_**k for k in range(n)], dtype=torch.double)
    shares = shares / shares.sum()
    likelihoods, divergences = terms("td", n, lambda_)
    assert likelihoods[0] == 1.0
    assert sum(divergences) == pytest.approx(1)
    assert divergences == pytest.approx(shares.tolist())
    assert likelihoods == pytest.approx([shares[i:].sum().item() for i in range(n)])


def test_limits_of_lambda():
    assert terms("td", 3, 0.0) == ([1.0, 0.0, 0.0], [1.0, 0.0, 0.0])
    assert terms("td", 3, 1.0) == terms("n_step", 3, 0.3)
    for near, limit in zip(terms("td", 4, 0.99999), terms("n_step", 4, 0.5), strict=True):
        assert near == pytest.approx(limit, abs=1e-4)
    assert terms("td", 1, 0.7) == terms("n_step", 1, 0.7) == ([1.0], [1.0])


# -- past posteriors


def constant(value: float, *names: str) -> Normal:
    return Normal(
        {name: torch.full((2,), value) for name in names},
        {name: torch.full((2,), -value) for name in names},
    )


def test_past_posteriors_in_order():
    posteriors, like = Posteriors({}), {"a": torch.zeros(2)}
    posteriors.start("a", torch.zeros(2), torch.zeros(2))
    for number in (1.0, 2.0, 3.0):
        posteriors.push(constant(number, "a"), keep=3)
    assert len(posteriors) == 3
    for age, expected in enumerate((3.0, 2.0, 1.0)):
        past = posteriors.normal(age, like)
        assert past.mean["a"].tolist() == [expected] * 2
        assert past.log_sigma["a"].tolist() == [-expected] * 2
    assert not any(value.requires_grad for value in posteriors.state.values())


def test_a_parameter_has_its_prior_where_there_is_no_posterior():
    """A head that came with the last task, in the posteriors before it."""
    posteriors, like = Posteriors({}), {"a": torch.zeros(2), "head": torch.zeros(2)}
    posteriors.start("a", torch.zeros(2), torch.zeros(2))
    posteriors.push(constant(1.0, "a"), keep=4)
    posteriors.start("head", torch.full((2,), 7.0), torch.zeros(2))
    posteriors.push(constant(2.0, "a", "head"), keep=4)
    means = [posteriors.normal(age, like).mean["head"][0].item() for age in range(3)]
    assert means == [2.0, 7.0, 7.0]
    assert posteriors.normal(2, like).mean["a"].tolist() == [0.0, 0.0]
    # A head that the last task did not train is as it was.
    posteriors.push(constant(3.0, "a"), keep=4)
    assert posteriors.normal(0, like).mean["head"].tolist() == [2.0, 2.0]


# -- the methods


def learned(pico, toy, method, tasks: int = 2, training: Training = FEW):
    """The adapters of some tasks, the losses of all steps, and the backbone."""
    backbone, losses = Backbone.load(pico("bert"), pooling="mean"), []
    found = []
    for number in range(tasks):
        session = Session(log=lambda event: losses.append(event["loss"]))
        found.append(learn_in(backbone, toy.tasks[: number + 1], method, training, session=session))
    return found, losses, backbone


@pytest.mark.parametrize("settings", [{"n": 1}, {"n": 3, "lambda_": 0.0}])
def test_one_posterior_is_vcl_to_the_last_bit(settings, pico, toy):
    vcl, td = small("vcl"), small("td_vcl", **settings)
    expected, losses, _ = learned(pico, toy, vcl, 3)
    adapted, same_losses, _ = learned(pico, toy, td, 3)
    assert losses == same_losses
    for one, other in zip(expected, adapted, strict=True):
        assert adapters.same(one.parameters, other.parameters)
    assert all(torch.equal(td.state[key], value) for key, value in vcl.state.items())


def test_lambda_one_is_n_step(pico, toy):
    one, losses, _ = learned(pico, toy, small("td_vcl", lambda_=1.0, kept=4))
    other, same_losses, _ = learned(pico, toy, small("td_vcl", objective="n_step", kept=4))
    assert losses == same_losses and adapters.same(one[1].parameters, other[1].parameters)
    _, td, _ = learned(pico, toy, small("td_vcl", kept=4))
    assert td != losses


def test_the_loss_by_hand(bert, toy):
    """CE weighted by task, and the divergences from two posteriors, without noise."""
    method = small("td_vcl", n=2, kept=4, initial_sigma=1e-9, beta=0.3, lambda_=0.5)
    learn(bert, toy.tasks[:1], method, FEW)
    bert.open(toy[1])
    method.begin(bert, toy[1])
    rows = bert.encode(method.examples(toy.tasks[:2]))
    assert rows.tasks.count("fruit") == len(toy[1].train) == rows.tasks.count(toy[1].name)
    method.optimizer([{"params": method.parameters(bert), "lr": 0.1}], FEW, examples=len(rows))
    with torch.no_grad():
        next(iter(method.field.means.values())).add_(0.01)
    batch = rows.batch([0, 1, len(rows) - 1])
    losses = bert.losses(batch)
    weights = torch.tensor([1.0, 1.0, 1 / 3])
    divergences = [
        method.field.divergence(method.posteriors.normal(age, method.field.means)) for age in (0, 1)
    ]
    expected = (weights * losses).mean()
    expected = expected + 0.3 / len(rows) * (2 / 3 * divergences[0] + 1 / 3 * divergences[1])
    torch.testing.assert_close(method.loss(bert, batch), expected)
    assert divergences[0] != divergences[1]


def test_past_posteriors_are_not_trained(pico, toy):
    method = small("td_vcl", n=3, kept=4)
    _, _, backbone = learned(pico, toy, method, 2)
    before = {key: value.clone() for key, value in method.state.items() if "posterior" in key}
    learn(backbone, toy.tasks[:3], method, FEW)
    for age in (0, 1):
        for key, value in before.items():
            if key.startswith(f"posterior/{age}/"):
                now = method.state[key.replace(f"posterior/{age}", f"posterior/{age + 1}")]
                assert torch.equal(now, value)
    kept = Exemplars.of(method.state)
    assert kept.counts == {toy[1].name: 4, toy[2].name: 4} and method.store_bytes == kept.size


def test_a_strong_prior_holds_the_module_and_the_head(pico, toy):
    def moved(beta: float) -> float:
        found, _, _ = learned(pico, toy, small("vcl", beta=beta))
        return sum(
            (found[1].parameters[name] - found[0].parameters[name]).square().sum().item()
            for name in found[1].parameters
        )

    assert moved(1e4) < 0.3 * moved(0.0)


def test_the_coreset_is_set_aside_and_adapts_only_what_answers(pico, toy):
    method = small("vcl", coreset=2, coreset_epochs=3)
    found, _, backbone = learned(pico, toy, method, 2)
    kept = Exemplars.of(method.state)
    trained = method.examples(toy.tasks[:2])[0].data
    assert kept.counts == {task.name: 2 * len(task.classes) for task in toy.tasks[:2]}
    assert len(trained) == len(toy[1].train) - 2 * len(toy[1].classes)
    assert not {text.encode() for text in trained["text"]} & set(kept.inputs[toy[1].name])
    assert method.store_bytes == kept.size > 0

    # The posterior before the adaptation is handed on: the same without one, on the same examples.
    handed = method.posteriors.normal(0, method.field.means).mean
    name = next(name for name in handed if "lora_B" in name)
    assert not torch.equal(handed[name], found[1].parameters[name.replace(".default", "")])
    backbone.open(toy[2])
    method.begin(backbone, toy[2])
    assert torch.equal(method.field.means[name].detach(), handed[name])


def test_a_shared_head_keeps_its_posterior(pictures, pico):
    method, training = small("vcl"), Training(epochs=1, batch_size=8, heads="shared")
    backbone = Backbone.load(pico("vit"))
    learn(backbone, pictures.tasks[:1], method, training)
    assert {name.split("/")[4] for name in method.state if "/head/" in name} == {"a"}
    before = method.posteriors.latest("head/a/weight")[0].clone()
    learn(backbone, pictures.tasks, method, training)
    assert {name.split("/")[4] for name in method.state if "/head/" in name} == {"b"}
    assert not torch.equal(method.posteriors.latest("head/b/weight")[0], before)


@pytest.mark.parametrize("sampling", ["examples", "weights"])
def test_recomputed_activations_see_the_same_samples(sampling, pico, toy):
    plain, recomputed = (
        learned(
            pico,
            toy,
            small("vcl", sampling=sampling, initial_sigma=0.1),
            1,
            Training(epochs=1, batch_size=8, gradient_checkpointing=on),
        )
        for on in (False, True)
    )
    assert recomputed[1] == pytest.approx(plain[1], abs=1e-5)
    for name, value in plain[0][0].parameters.items():
        torch.testing.assert_close(recomputed[0][0].parameters[name], value, atol=1e-4, rtol=0)


@pytest.mark.parametrize("settings", [{"packing": True}, {"bf16": True}])
def test_packing_and_autocast(settings, tmp_path):
    """Packed examples share a row, and so a sample; autocast computes the noise in bfloat16."""
    backbone = Backbone.load(save_language_model(tmp_path / "model", "causal"), max_new_tokens=4)
    method, losses = small("td_vcl", kept=4, initial_sigma=0.05), []
    training = Training(epochs=3, batch_size=8, learning_rate=0.02, **settings)
    for tasks in ([*text_stream()][:1], [*text_stream()][:2]):
        session = Session(log=lambda event: losses.append(event["loss"]))
        learn_in(backbone, tasks, method, training, session=session)
    assert len(method.posteriors) == 3 and sum(losses[-4:]) < sum(losses[:4])
    start = torch.tensor(method.initial_sigma).log()
    assert all((value.detach() != start).any() for value in method.field.log_sigmas.values())


def test_the_coreset_of_a_language_model(tmp_path):
    backbone = Backbone.load(save_language_model(tmp_path / "model", "causal"), max_new_tokens=4)
    method, tasks = small("vcl", coreset=2, coreset_epochs=1), [*text_stream()]
    for number in (1, 2):
        learn(backbone, tasks[:number], method, FEW)
    counts = Exemplars.of(method.state).counts
    assert counts == {task.name: 2 * max(1, len(task.classes)) for task in tasks[:2]}


@pytest.mark.parametrize("peft", ["bottleneck", "full"])
def test_every_kind_of_module_is_sampled(peft, bert, toy):
    method = small("vcl", peft=peft)
    found = learn(bert, toy.tasks[:1], method, FEW)
    assert set(adapter_sites(bert)) == set(adapters.trainable(bert.model))
    start = torch.tensor(method.initial_sigma).log()
    assert all((value.detach() != start).any() for value in method.field.log_sigmas.values())
    assert not adapters.same(found.start, found.parameters)


SETTINGS = {
    "coreset": lambda: small("vcl", coreset=1, coreset_epochs=1, sampling="weights"),
    "n_step": lambda: small("td_vcl", objective="n_step", n=2, kept=3, replayed_share=0.5),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    "check", [checks.only_its_parameters_change, checks.a_run_goes_on_inside_a_task]
)
def test_conformance_with_other_settings(check, name, tmp_path):
    check(MethodUnderTest(name, SETTINGS[name], tmp_path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VCL(prior_sigma=0.0), "`prior_sigma` is 0.0, but a standard deviation must be"),
        (lambda: VCL(initial_sigma=-1.0), "`initial_sigma` is -1.0, but"),
        (lambda: TDVCL(n=0), "`n` is 0, but there must be at least 1"),
        (lambda: TDVCL(lambda_=1.5), "`lambda_` is 1.5, but must be from 0 to 1"),
        (lambda: TDVCL(n=3, kept=0), "replays examples of 2 earlier tasks, but with `kept: 0`"),
    ],
)
def test_settings_that_make_no_sense(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_damaged_state(bert, toy):
    method = small("vcl")
    learn(bert, toy.tasks[:1], method, FEW)
    name = next(name for name in method.state if "/mean/" in name)
    intact = method.state[name]
    method.state[name] = intact[:1]
    with pytest.raises(RunError, match="that is saved in the run is damaged"):
        learn(bert, toy.tasks[:2], method, FEW)
    method.state[name] = method.state[name.replace("mean", "log_sigma")] = intact[:1]
    with pytest.raises(RunError, match="does not fit the model"):
        learn(bert, toy.tasks[:2], method, FEW)


def test_replay_around_it(pico, toy):
    for inner in ("vcl", "td_vcl"):
        learned(pico, toy, Replay(method=small(inner), per_class=2), 2)


def test_what_cannot_be_done_is_said_before_training(bert, toy):
    with pytest.raises(InputError, match="`coreset: 99` sets aside all 32 training examples"):
        learn(bert, toy.tasks[:1], small("vcl", coreset=99), FEW)
    method = small("td_vcl", n=1)
    learn(bert, toy.tasks[:1], method, FEW)
    learn(bert, toy.tasks[:2], method, FEW)
    method.n = 3
    with pytest.raises(
        InputError, match="`n` is 3, but the earlier tasks were learned with `n: 1`"
    ):
        learn(bert, toy.tasks[:3], method, FEW)
