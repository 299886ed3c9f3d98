"""Each rule against its published formula, written in plain NumPy on full matrices,
and against peft and mergekit.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils import merge_utils

from perdure import LowRank, TaskVector, registry
from perdure.rules.parts import sparse
from perdure.vectors.task_vector import Deferred

few = settings(max_examples=10, deadline=None, derandomize=True)


def rule(name):
    return registry.find("rule", name)


def random(shape, n=3, seed=0, rank=None):
    """n matrices, of full rank or of a given one."""
    g = np.random.default_rng(seed)
    if rank is None:
        return [g.standard_normal(shape) for _ in range(n)]
    return [
        g.standard_normal((shape[0], rank)) @ g.standard_normal((rank, shape[1])) for _ in range(n)
    ]


def vectors(*layers, names=("w", "u", "b")):
    """Task vectors of layers, each a list with one array for each task."""
    return {
        task: TaskVector({k: torch.tensor(v) for k, v in zip(names, of_task, strict=False)})
        for task, of_task in zip("abcdefgh", zip(*layers, strict=True), strict=False)
    }


def close(merged, name, expected, tolerance=1e-9):
    np.testing.assert_allclose(merged.dense(name).numpy(), expected, rtol=tolerance, atol=tolerance)


# --- sparse.py ------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 99),
    n=st.integers(1, 300),
    dtype=st.sampled_from([np.float32, np.float64]),
    data=st.data(),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_threshold_is_the_kth_greatest_magnitude(seed, n, dtype, data):
    g = np.random.default_rng(seed)
    x = (g.standard_normal(n) * 10.0 ** g.integers(-42, 30, n)).astype(
        dtype
    )  # single precision: denormals too
    x[g.random(n) < 0.2] = 0
    x[g.random(n) < 0.2] = x[0]
    k = data.draw(st.integers(1, n))
    layers = [torch.tensor(part) for part in np.array_split(x, 3)]
    assert sparse.threshold(lambda: layers, k) == np.sort(np.abs(x))[::-1][k - 1]
    assert sparse.threshold(lambda: layers, n + 1) == 0.0


def test_random_numbers_depend_on_what_they_are_for_alone():
    def draw(*about):
        return torch.rand(4, generator=sparse.generator(*about)).tolist()

    assert draw(0, "a", "w") == draw(0, "a", "w")
    assert (
        len(
            {
                tuple(draw(*about))
                for about in [(0, "a", "w"), (1, "a", "w"), (0, "b", "w"), (0, "aw", "")]
            }
        )
        == 4
    )


# --- averages, MagMax, Breadcrumbs ----------------------------------------------------------------


def test_averages():
    w, b = random((4, 3), 5), random((4,), 5)
    for name in ("average", "running_average"):
        merged = rule(name)(vectors(w, b))
        close(merged, "w", np.mean(w, 0))
        close(merged, "u", np.mean(b, 0))


def test_magmax():
    w = random((6, 5), 4)
    expected = np.take_along_axis(np.stack(w), np.abs(w).argmax(0)[None], 0)[0]
    close(rule("magmax")(vectors(w)), "w", 0.5 * expected)


def test_magmax_takes_the_later_of_equals():
    merged = rule("magmax")(
        vectors([np.array([2.0, -1.0]), np.array([-2.0, 1.0]), np.array([1.0, 1.0])]), scale=1.0
    )
    assert merged.dense("w").tolist() == [-2.0, 1.0]


def test_breadcrumbs_are_between_two_quantiles_of_each_layer():
    w, u = random((5, 8)), random((3, 7), seed=1)
    merged = rule("breadcrumbs")(vectors(w, u), beta=0.5, gamma=0.9, scale=0.7)
    for name, layer in (("w", w), ("u", u)):
        expected = 0
        for change in layer:
            low, high = np.sort(np.abs(change).ravel())[
                [round(0.5 * change.size), round(0.9 * change.size) - 1]
            ]
            expected = expected + change * ((np.abs(change) >= low) & (np.abs(change) <= high))
        close(merged, name, 0.7 * expected)


# --- TIES -----------------------------------------------------------------------------------------


def ties(taus, density, how):
    """The published formula on flat task vectors, with the whole-model majority where a sum is
    zero.
    """
    trimmed = []
    for tau in taus:
        least = np.sort(np.abs(tau))[::-1][max(1, int(density * len(tau))) - 1]
        trimmed.append(np.where(np.abs(tau) >= least, tau, 0))
    gamma = np.sign(np.sum(trimmed, 0))
    gamma[gamma == 0] = np.sign(gamma.sum())
    agree = [(np.sign(tau) == gamma) & (tau != 0) for tau in trimmed]
    total = np.sum([tau * a for tau, a in zip(trimmed, agree, strict=True)], 0)
    return total if how == "sum" else total / np.maximum(np.sum(agree, 0), 1)


@given(
    seed=st.integers(0, 999),
    density=st.sampled_from([0.05, 0.2, 0.5, 1.0]),
    how=st.sampled_from(["mean", "sum"]),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_ties_over_the_model_and_per_layer(seed, density, how):
    g = np.random.default_rng(seed)
    w, u, b = (
        [g.integers(-3, 4, shape).astype(float) for _ in range(3)]
        for shape in [(4, 5), (3, 4), (7,)]
    )
    flat = [np.concatenate([x.ravel() for x in one]) for one in zip(w, u, b, strict=True)]
    merged = rule("ties")(vectors(w, u, b), density=density, how=how, scale=0.5)
    parts = np.split(0.5 * ties(flat, density, how), [20, 32])
    for name, part in zip("wub", parts, strict=True):
        close(merged, name, part.reshape(merged[name].shape))
    merged = rule("ties")(vectors(w, u, b), density=density, how=how, per="layer")
    for name, layer in zip("wub", (w, u, b), strict=True):
        close(merged, name, ties([x.ravel() for x in layer], density, how).reshape(layer[0].shape))


def test_where_signs_cancel_the_majority_of_the_whole_model_decides():
    w = [np.array([[1.0, -1.0]]), np.array([[-1.0, -1.0]])]
    u = [np.array([5.0, 5.0, 5.0]), np.array([5.0, 5.0, 5.0])]
    assert rule("ties")(vectors(w, u), density=1.0).dense("w").tolist() == [[1.0, -1.0]]
    assert rule("ties")(vectors(w, u), density=1.0, per="layer").dense("w").tolist() == [
        [-1.0, -1.0]
    ]
    assert rule("ties")(vectors(w), density=1.0).dense("w").tolist() == [[-1.0, -1.0]]
    neither = rule("ties")(vectors([np.array([1.0]), np.array([-1.0])]), density=1.0)
    assert neither.dense("w").tolist() == [0.0]


@pytest.mark.parametrize("mode", ["fold", "reference", "batch"])
def test_continual_ties(mode):
    w, u = random((4, 5), 4), random((6,), 4, seed=1)
    flat = [np.concatenate([x.ravel() for x in one]) for one in zip(w, u, strict=True)]
    if mode == "batch":
        expected = 0.3 * ties(flat, 0.4, "sum")
    elif mode == "fold":
        expected = flat[0]
        for tau in flat[1:]:
            expected = ties([expected, tau], 0.4, "sum")
        expected = 0.3 * expected
    else:  # fusion_bench/method/opcm/ties_merging.py
        expected = 0.3 * flat[0]
        for tau in flat[1:]:
            expected = expected + 0.3 * ties([expected, tau], 0.4, "sum")
    merged = rule("continual_ties")(vectors(w, u), mode=mode, density=0.4, how="sum", scale=0.3)
    close(merged, "w", expected[:20].reshape(4, 5))
    close(merged, "u", expected[20:])


def test_the_reference_of_continual_ties_counts_twice():
    same = vectors([np.array([1.0])] * 4)
    grown = (
        rule("continual_ties")(same, mode="reference", how="mean", density=1.0, scale=0.5)
        .dense("w")
        .item()
    )
    folded = (
        rule("continual_ties")(same, mode="fold", how="mean", density=1.0, scale=0.5)
        .dense("w")
        .item()
    )
    assert folded == 0.5 and grown > 2 * folded


@given(seed=st.integers(0, 99), density=st.sampled_from([0.1, 0.35, 0.8]))
@few
def test_ties_per_layer_is_pefts(seed, density):
    w = random((7, 6), 4, seed)
    expected = merge_utils.ties([torch.tensor(x) for x in w], torch.ones(4), density)
    close(rule("ties")(vectors(w), density=density, per="layer"), "w", expected.numpy())
    pruned = merge_utils.magnitude_prune([torch.tensor(w[0])], torch.ones(1), density)
    close(rule("ties")(vectors(w[:1]), density=density, per="layer"), "w", pruned.numpy())


# --- DARE and DELLA -------------------------------------------------------------------------------


@pytest.mark.parametrize(("then", "theirs"), [("sum", "dare_linear"), ("ties", "dare_ties")])
def test_dare_is_pefts_with_the_same_entries_dropped(then, theirs, monkeypatch):
    given = vectors(random((6, 5), 3))
    tasks = iter("abc")
    monkeypatch.setattr(
        merge_utils,
        "random_pruning",
        lambda tensor, density, rescale: tensor * _mask(next(tasks), tensor, density) / density,
    )
    expected = getattr(merge_utils, theirs)(
        [v.dense("w") for v in given.values()], torch.ones(3), 0.4
    )
    close(rule("dare")(given, p=0.6, then=then, seed=3), "w", expected.numpy())


def _mask(task, tensor, density):
    """The entries that `dare` keeps, read off what it makes of ones."""
    ones = {task: TaskVector({"w": torch.ones_like(tensor)})}
    return (rule("dare")(ones, p=1 - density, seed=3).dense("w") != 0).to(tensor)


def test_dare_drops_the_share_and_rescales():
    merged = rule("dare")(
        {"a": TaskVector({"w": torch.full((200, 200), 3.0)})}, p=0.9, scale=2.0
    ).dense("w")
    torch.testing.assert_close(merged.unique(), torch.tensor([0.0, 60.0]))
    assert abs((merged != 0).float().mean() - 0.1) < 0.005


@pytest.mark.parametrize("name", ["dare", "della"])
def test_what_is_dropped_depends_on_seed_task_and_layer_alone(name):
    given = vectors(random((6, 5)), random((6, 5), seed=1))
    one = {"b": given["b"]}
    rest = {t: v for t, v in given.items() if t != "b"}
    whole, without, alone = (rule(name)(v, then="sum", seed=5) for v in (given, rest, one))
    close(whole - without, "w", alone.dense("w").numpy(), 1e-6)
    kept = [
        rule(name)(one, then="sum", seed=seed, p=0.5).dense(k) != 0
        for seed, k in [(5, "w"), (5, "u"), (6, "w")]
    ]
    assert not torch.equal(kept[0], kept[1]) and not torch.equal(kept[0], kept[2])
    # and is the same in single precision
    single = {"b": TaskVector({"w": given["b"]["w"].float()})}
    assert torch.equal(rule(name)(single, then="sum", seed=5, p=0.5).dense("w") != 0, kept[0])


def test_dare_combines_what_is_left():
    w = random((5, 4))
    left = [rule("dare")({t: v}, then="sum").dense("w").numpy() for t, v in vectors(w).items()]
    close(rule("dare")(vectors(w), then="average", scale=2.0), "w", 2.0 * np.mean(left, 0))
    close(rule("dare")(vectors(w), then="sum", scale=2.0), "w", 2.0 * np.sum(left, 0))
    elected = ties([x.ravel() for x in left], 1.0, "mean").reshape(5, 4)
    close(rule("dare")(vectors(w), then="ties", scale=2.0), "w", 2.0 * elected)


def test_della_keeps_by_rank_in_the_row():
    row = torch.tensor([0.5, -4.0, 1.0, 3.0, -2.0], dtype=torch.float64)
    probability = torch.tensor([0.4, 0.8, 0.5, 0.7, 0.6], dtype=torch.float64)
    many = {"a": TaskVector({"w": torch.cat([row.expand(2000, 5), 100 * row.expand(2000, 5)])})}
    drawn = rule("della")(many, p=0.4, epsilon=0.2, then="sum").dense("w")
    for rows, factor in ((drawn[:2000], 1), (drawn[2000:], 100)):
        torch.testing.assert_close((rows != 0).double().mean(0), probability, atol=0.05, rtol=0)
        rescaled = (factor * row / probability).expand_as(rows)
        torch.testing.assert_close(torch.where(rows != 0, rows, rescaled), rescaled)
    single = rule("della")(
        {"a": TaskVector({"w": torch.ones(2000, 1)})}, p=0.4, epsilon=0.2, then="sum"
    ).dense("w")
    assert abs((single != 0).float().mean() - 0.6) < 0.05  # a row of one entry has no ranks
    assert len(rule("della")({"a": TaskVector({"w": row})}).dense("w")) == 5


def test_della_elects_and_fuses():
    w = random((5, 4))
    left = [rule("della")({t: v}, then="sum").dense("w").numpy() for t, v in vectors(w).items()]
    close(
        rule("della")(vectors(w), scale=1.1),
        "w",
        1.1 * ties([x.ravel() for x in left], 1.0, "mean").reshape(5, 4),
    )


# --- slerp ----------------------------------------------------------------------------------------


def test_slerp_for_each_layer_and_for_the_model():
    w, b = random((4, 3), 2), random((5,), 2, seed=1)

    def slerp(a, b, t, cosine):
        phi = np.arccos(cosine)
        return (np.sin((1 - t) * phi) * a + np.sin(t * phi) * b) / np.sin(phi)

    def cosine(a, b):
        return np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)

    merged = rule("slerp")(vectors(w, b), t=0.3)
    close(merged, "w", slerp(*w, 0.3, cosine(*w)))
    close(merged, "u", slerp(*b, 0.3, cosine(*b)))
    merged = rule("slerp")(vectors(w, b), t=0.3, per="model")
    both = cosine(*(np.concatenate([x.ravel() for x in one]) for one in zip(w, b, strict=True)))
    close(merged, "w", slerp(*w, 0.3, both))


@pytest.mark.parametrize("angle", [0.02, 0.04])
def test_slerp_of_nearly_parallel_layers_is_linear(angle):
    a, b = np.array([1.0, 0.0]), np.array([np.cos(angle), np.sin(angle)])
    linear = 0.75 * a + 0.25 * b
    curved = np.array([np.cos(angle / 4), np.sin(angle / 4)])
    assert np.abs(linear - curved).max() > 1e-6
    close(rule("slerp")(vectors([a, b]), t=0.25), "w", linear if np.cos(angle) > 0.9995 else curved)


def test_slerp_of_parallel_or_missing_layers_is_linear():
    one = np.array([[1.0, 2.0]])
    close(rule("slerp")(vectors([one, 3 * one]), t=0.25), "w", 1.5 * one)
    close(
        rule("slerp")({"a": TaskVector({"w": torch.tensor(one)}), "b": TaskVector({})}, t=0.25),
        "w",
        0.75 * one,
    )


# --- KnOTS, TSV, Iso, RegMean ---------------------------------------------------------------------


@pytest.mark.parametrize("rank", [None, 2])
def test_knots(rank):
    w, u, b = random((5, 6), 3, 0, rank), random((7, 4), 3, 1, rank), random((5,), 3, 2)
    flat, bases = [[] for _ in range(3)], []
    for layer in (w, u):
        U, S, Vh = np.linalg.svd(np.concatenate(layer, 1), full_matrices=False)
        q = np.count_nonzero(S / S[0] > 1e-6)
        bases.append(U[:, :q])
        for i, part in enumerate(np.split(S[:q, None] * Vh[:q], 3, 1)):
            flat[i].append(part.ravel())
    flat = [np.concatenate([*parts, b[i]]) for i, parts in enumerate(flat)]
    merged = ties(flat, 0.3, "mean")
    sizes = [U.shape[1] * x[0].shape[1] for U, x in zip(bases, (w, u), strict=True)]
    in_w, in_u, in_b = np.split(merged, np.cumsum(sizes))
    ours = rule("knots")(vectors(w, u, b), density=0.3, scale=0.6)
    close(ours, "w", 0.6 * bases[0] @ in_w.reshape(-1, 6))
    close(ours, "u", 0.6 * bases[1] @ in_u.reshape(-1, 4))
    close(ours, "b", 0.6 * in_b)


def test_knots_of_task_arithmetic_is_the_sum():
    w = random((5, 6), 3, 0, 2)
    close(rule("knots")(vectors(w), then="sum", scale=0.4), "w", 0.4 * np.sum(w, 0))


def polar(columns):
    U, S, Vh = np.linalg.svd(columns, full_matrices=False)
    rank = np.count_nonzero(S / S[0] > 1e-6)
    return U[:, :rank] @ Vh[:rank]


@pytest.mark.parametrize("shape", [(9, 7), (6, 8)])
@pytest.mark.parametrize("rank", [None, 2])
def test_tsv(shape, rank):
    w, b = random(shape, 3, 0, rank), random((4,), 3, 1)
    k = min(shape) // 3
    Us, Ss, Vhs = zip(
        *((U[:, :k], S[:k], Vh[:k]) for U, S, Vh in map(np.linalg.svd, w)), strict=True
    )
    expected = (
        polar(np.concatenate(Us, 1)) @ np.diag(np.concatenate(Ss)) @ polar(np.concatenate(Vhs).T).T
    )
    merged = rule("tsv")(vectors(w, b), scale=1.3)
    close(merged, "w", 1.3 * expected)
    close(merged, "u", np.mean(b, 0))


def test_tsv_takes_no_singular_vectors_of_zero_and_as_many_as_asked():
    w = random((8, 8), 2, 0, 1)
    Us, Ss, Vhs = zip(
        *((U[:, :1], S[:1], Vh[:1]) for U, S, Vh in map(np.linalg.svd, w)), strict=True
    )
    expected = (
        polar(np.concatenate(Us, 1)) @ np.diag(np.concatenate(Ss)) @ polar(np.concatenate(Vhs).T).T
    )
    for rank in (0, 1, 4):
        close(rule("tsv")(vectors(w), rank=rank), "w", expected)
    twice = rule("tsv")(vectors([w[0], w[0]]))  # vectors that depend on each other
    assert np.linalg.matrix_rank(twice.dense("w").numpy(), tol=1e-9) == 1


@pytest.mark.parametrize("rank", [None, 2])
def test_iso_c(rank):
    w, b = random((6, 8), 2, 0, rank), random((4,), 2, 1)
    U, S, Vh = np.linalg.svd(np.sum(w, 0), full_matrices=False)
    q = np.count_nonzero(S / S[0] > 1e-6)
    merged = rule("iso")(vectors(w, b), scale=1.5)
    close(merged, "w", 1.5 * S[:q].mean() * U[:, :q] @ Vh[:q])
    close(merged, "u", np.mean(b, 0))


@pytest.mark.parametrize(
    ("shape", "common"), [((10, 12), 0.5), ((12, 10), 0.8), ((9, 9), 0.4), ((10, 10), 1.0)]
)
def test_iso_cts(shape, common):
    w = random(shape, 3)
    U, S, Vh = np.linalg.svd(np.sum(w, 0), full_matrices=False)
    own = round((min(shape) - int(min(shape) * common)) / 3)
    k = min(shape) - 3 * own
    Us, Ss, Vhs = [U[:, :k]], [S[:k]], [Vh[:k]]
    for tau in w:
        u, s, vh = np.linalg.svd(tau - U[:, :k] @ U[:, :k].T @ tau, full_matrices=False)
        Us.append(u[:, :own]), Ss.append(s[:own]), Vhs.append(vh[:own])
    S = np.concatenate(Ss)
    expected = S.mean() * polar(np.concatenate(Us, 1)) @ polar(np.concatenate(Vhs).T).T
    close(rule("iso")(vectors(w), mode="cts", common=common), "w", expected)


def test_iso_cts_of_lora_has_equal_singular_values_and_no_directions_of_rounding():
    torch.manual_seed(0)
    one = LowRank(torch.randn(20, 4), torch.randn(4, 30))  # in single precision
    given = {"a": one, "b": 3.0 * one.truncate(1)}  # outside of the common directions b is rounding
    merged = rule("iso")(
        {t: TaskVector({"w": w}) for t, w in given.items()}, mode="cts", common=0.5
    )
    values = torch.linalg.svdvals(merged.dense("w"))
    torch.testing.assert_close(values[:3], values[:1].expand(3), rtol=1e-4, atol=1e-4)
    assert values[3] < 1e-4 * values[0]
    within = one.svd()[0]
    left = merged.dense("w")
    torch.testing.assert_close(within @ (within.T @ left), left, rtol=1e-3, atol=1e-3)


def covariances(n=3, width=4, seed=5):
    g = np.random.default_rng(seed)
    return [
        x.T @ x / len(x)
        for x in (g.standard_normal((9, width)) @ np.diag([3, 1, 1, 0.1]) for _ in range(n))
    ]


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
def test_regmean(alpha):
    w, b, C = random((5, 4)), random((5,), seed=1), covariances()
    inputs = {t: {"w": torch.tensor(c)} for t, c in zip("abc", C, strict=True)}
    G = [alpha * c + (1 - alpha) * np.diag(np.diag(c)) for c in C]
    expected = sum(x @ g for x, g in zip(w, G, strict=True)) @ np.linalg.inv(sum(G))
    merged = rule("regmean")(vectors(w, b), inputs, alpha=alpha)
    close(merged, "w", expected)
    close(merged, "u", np.mean(b, 0))


def test_regmean_is_the_least_squares_solution_for_models_and_for_task_vectors():
    g = np.random.default_rng(0)
    w, x = random((5, 4), 2), [g.standard_normal((9, 4)), g.standard_normal((9, 4))]
    inputs = {t: {"w": torch.tensor(one.T @ one / 9)} for t, one in zip("ab", x, strict=True)}
    outputs = np.concatenate([one @ tau.T for one, tau in zip(x, w, strict=True)])
    solution = np.linalg.lstsq(np.concatenate(x), outputs, rcond=None)[0].T
    close(rule("regmean")(vectors(w), inputs, alpha=1.0), "w", solution)
    base = random((5, 4), 1, 9)[0]
    whole = (
        rule("regmean")(vectors([base + tau for tau in w]), inputs, alpha=1.0).dense("w").numpy()
    )
    np.testing.assert_allclose(whole - base, solution, rtol=1e-9, atol=1e-9)


def test_regmean_of_inputs_that_span_less_than_all_dimensions():
    g = np.random.default_rng(1)
    x = g.standard_normal((9, 2)) @ g.standard_normal((2, 4))
    C = x.T @ x / 9
    w = random((5, 4), 2)
    for dtype in (torch.float64, torch.float32):
        inputs = {t: {"w": torch.tensor(C).to(dtype)} for t in "ab"}
        merged = rule("regmean")(vectors(w), inputs, alpha=1.0)
        close(merged, "w", np.mean(w, 0) @ np.linalg.pinv(C) @ C, 1e-4)


# --- OPCM -----------------------------------------------------------------------------------------


def opcm(models, alpha, block="topleft"):
    """The authors' code with θ0 = 0: full decompositions, one merged matrix and one merged bias."""
    (W, b), scale = models[0], 1.0
    norms = [np.sqrt(np.sum(W**2) + np.sum(b**2))]
    for tau, beta in models[1:]:
        norms.append(np.sqrt(np.sum(tau**2) + np.sum(beta**2)))
        U, S, Vh = np.linalg.svd(W)
        r = int(np.argmax(np.cumsum(S) / S.sum() > alpha))
        P = U.T @ tau @ Vh.T
        np.fill_diagonal(P, 0)
        if block == "topleft":
            P[:r, :r] = 0
        else:
            P[:r], P[:, :r] = 0, 0
        W, b = scale * W + U @ P @ Vh, scale * b + beta
        scale = np.sqrt(np.sum(W**2) + np.sum(b**2)) / np.mean(norms)
        W, b = W / scale, b / scale
    return W, b, np.mean(norms)


@pytest.mark.parametrize("block", ["topleft", "both"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(7, 5), (5, 7)])
def test_opcm_is_the_authors_code_for_full_rank(shape, alpha, block):
    w, b = random(shape, 4), random((5,), 4, seed=1)
    W, bias, norm = opcm(list(zip(w, b, strict=True)), alpha, block)
    merged = rule("opcm")(vectors(w, b), alpha=alpha, block=block)
    close(merged, "w", W)
    close(merged, "u", bias)
    assert merged.norm() == pytest.approx(norm)


@pytest.mark.parametrize("block", ["topleft", "both"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
def test_opcm_adds_to_lora_only_what_is_orthogonal(alpha, block):
    torch.manual_seed(0)
    given = {
        t: TaskVector(
            {
                "w": LowRank(
                    torch.randn(9, 2, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
                ),
                "b": torch.randn(3, dtype=torch.float64),
            }
        )
        for t in "abcd"
    }
    before, factor = given["a"], 1.0
    for n in (2, 3, 4):
        some = dict(list(given.items())[:n])
        after, new = rule("opcm")(some, alpha=alpha, block=block), list(some.values())[-1]
        # the bias tells lambda_t, with which what was added to the matrix can be had
        ratio = (factor * before["b"] + new["b"]) / after["b"]
        torch.testing.assert_close(ratio, ratio[:1].expand(3))
        added = ratio[0] * after.dense("w") - factor * before.dense("w")
        A = before.dense("w")
        assert abs((A * added).sum()) < 1e-10 * A.norm() * added.norm()
        assert added.norm() > 0.1 * new.dense("w").norm()
        assert after.norm() == pytest.approx(sum(v.norm() for v in some.values()) / n)
        assert after["w"].rank <= 2 * n
        U, S, Vh = (
            x[..., : 2 * (n - 1)] if i < 2 else x[: 2 * (n - 1)]
            for i, x in enumerate(torch.linalg.svd(A))
        )
        P = U.T @ new.dense("w") @ Vh.T
        expected = new.dense("w") - U @ P.diag().diag() @ Vh
        if alpha == 0.0:  # then nothing but the diagonal is removed, along the numerical rank alone
            torch.testing.assert_close(added, expected)
        before, factor = after, ratio[0].item()


def test_opcm_of_one_model_is_that_model():
    w = random((4, 3), 1)
    assert torch.equal(rule("opcm")(vectors(w)).dense("w"), torch.tensor(w[0]))


def test_opcm_of_nothing_and_of_what_cancels():
    zero = TaskVector({"w": torch.zeros(2, 2)})
    assert rule("opcm")({"a": zero, "b": zero}).norm() == 0.0
    one = TaskVector({"b": torch.ones(2)})
    assert rule("opcm")({"a": one, "b": one * -1.0}).norm() == 0.0
    close(
        rule("opcm")({"a": zero, "b": TaskVector({"w": torch.eye(2)})}), "w", np.eye(2) / 2
    )  # the mean norm


def test_opcm_makes_deferred_entries_once():
    made = []
    entry = Deferred(torch.Size((2, 2)), lambda: made.append(1) or torch.eye(2))
    rule("opcm")({"a": TaskVector({"w": entry}), "b": TaskVector({"w": torch.ones(2, 2)})})
    assert len(made) == 1


# --- SLAO -----------------------------------------------------------------------------------------


def test_slao():
    torch.manual_seed(0)
    given = {t: TaskVector({"w": LowRank(torch.randn(4, 2), torch.randn(2, 3))}) for t in "abc"}
    B = np.zeros((4, 2))
    for i, v in enumerate(given.values(), start=1):
        B = B + (v["w"].B.numpy() - B) / np.sqrt(i)
    merged = rule("slao")(given)
    close(merged, "w", B @ given["c"]["w"].A.numpy(), 1e-6)
    assert merged["w"].rank == 2
    lacking = rule("slao")({"a": given["a"], "b": TaskVector({})})
    close(lacking, "w", (1 - 2**-0.5) * given["a"].dense("w").numpy(), 1e-6)


# --- mergekit -------------------------------------------------------------------------------------


def mergekit(*, consensus=None, sparsification=None, **parameters):
    """mergekit's merge of three changes of one tensor."""
    pytest.importorskip("mergekit")
    from mergekit.merge_methods import generalized_task_arithmetic as gta
    from mergekit.merge_methods.base import TensorGroup

    def merge(changes):
        n = range(1, len(changes) + 1)
        tensors = [torch.zeros(changes[0].shape, dtype=torch.float64), *map(torch.tensor, changes)]
        given = {
            k: dict.fromkeys(n, v)
            for k, v in parameters.items()
            if k in ("density", "gamma", "epsilon")
        }
        return gta.GeneralizedTaskArithmeticMerge(
            consensus_method=consensus and gta.ConsensusMethod(consensus),
            sparsification_method=sparsification and gta.SparsificationMethod(sparsification),
            default_normalize=False,
            default_rescale=False,
            method_name="test",
            method_pretty_name=None,
            method_reference_url=None,
        ).merge_group(
            TensorGroup.from_tensors(tensors, base_index=0),
            weight=dict.fromkeys(n, 1.0),
            int8_mask=False,
            rescale=False,
            normalize=parameters.get("normalize", False),
            **{"lambda": parameters.get("scale", 1.0)},
            **given,
        )

    return merge


@pytest.mark.parametrize(("how", "normalize"), [("mean", True), ("sum", False)])
def test_ties_per_layer_is_mergekits(how, normalize):
    w = random((6, 5))
    theirs = mergekit(
        consensus="sum", sparsification="magnitude", density=0.3, normalize=normalize, scale=0.7
    )(w)
    close(
        rule("ties")(vectors(w), density=0.3, how=how, scale=0.7, per="layer"), "w", theirs.numpy()
    )


def test_breadcrumbs_are_mergekits():
    w = random((8, 5))
    theirs = mergekit(sparsification="magnitude_outliers", density=0.25, gamma=0.25, scale=0.4)(w)
    close(rule("breadcrumbs")(vectors(w), beta=0.5, gamma=0.75, scale=0.4), "w", theirs.numpy())


def test_della_keeps_with_the_probabilities_of_mergekit(monkeypatch):
    theirs = mergekit(sparsification="della_magprune", density=0.6, epsilon=0.2)
    seen = []

    def bernoulli(probability):
        seen.append(probability)
        return torch.ones_like(probability)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    w = random((5, 6), 1)[0]
    theirs([w])
    torch.testing.assert_close(
        1 - 0.4 + 0.2 * sparse.standing(torch.tensor(w)), seen[0].double(), rtol=0, atol=1e-6
    )


def test_slerp_is_mergekits():
    pytest.importorskip("mergekit")
    from mergekit.merge_methods.slerp import slerp

    w = random((4, 3), 2)
    theirs = slerp(torch.tensor([0.3], dtype=torch.float64), *(torch.tensor(x)[None] for x in w))[0]
    close(rule("slerp")(vectors(w), t=0.3), "w", theirs.numpy())
