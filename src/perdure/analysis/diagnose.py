"""Diagnose a run: why its tasks disturb each other, how its features moved, how well it knows the task.

RUN/diagnostics.json   what was found (docs/run-folder.md has its keys); derived, may be deleted
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure import analysis
from perdure.analysis.cka import batches
from perdure.analysis.subject import EXAMPLES, Subject, subject_of
from perdure.data.task import TaskStream
from perdure.errors import InputError, RunError, UnknownName
from perdure.evaluation.posterior import TaskPosterior, describe
from perdure.evaluation.progress_bar import Progress
from perdure.evaluation.score import probabilities, settled, task_logits
from perdure.learning import engine
from perdure.merging.combine import task_vectors
from perdure.merging.rule_settings import RuleLike
from perdure.models import adapters
from perdure.models.bottleneck import BottleneckConfig
from perdure.models.matrices import is_matrix, matrix
from perdure.runs import layout
from perdure.runs.extend import rule_of
from perdure.runs.folder import Run
from perdure.runs.sources import Sources
from perdure.storage import files
from perdure.vectors.task_vector import TaskVector

FILE = "diagnostics.json"
MANY = 40  # with more tasks the values of single layers are left out: pairs grow with the square

READING = {
    "interference": "Cosine 0: two tasks change the weights independently; above 0 they agree, below they oppose each "
    "other. Overlap is the mean squared cosine between their leading singular subspaces (0 orthogonal, 1 equal). Sign "
    "conflict is the share of weights that they change in opposite directions (50 % is chance).",
    "zones": "Shares of ‖ΔW‖²: zone I among the leading singular vectors of the pre-trained weights (half of the "
    "singular values' sum), II among the others, III outside of them; more than by chance in I means that what the "
    "pre-trained model does most is changed.",
    "cka": "1: the same features but for rotation and scale; near 0: nothing in common. Low values against the "
    "pre-trained model mean that learning moved the features far.",
    "probe": "An analysis with the training data of all tasks, no method: a fresh linear classifier on each step's "
    "frozen features. Rising: the features gained; flat: stable, not plastic; falling: something was lost.",
    "posterior": "Row: the true task, column: the task that was found. A calibration error of 0 means that of the "
    "answers given with confidence p, a share p is right.",
}
PARTS = tuple(READING)
OF_EXAMPLES = ("cka", "probe", "posterior")
"""The parts that read examples of the tasks, and need those of one task at least."""


class _LeftOut(Exception):
    """Why a part makes no sense for a run."""


def diagnose(
    folder: str | Path,
    rule: RuleLike | None = None,
    settings: Sequence[str] = (),
    *,
    examples: int = EXAMPLES,
    only: Sequence[str] = (),
    stream: TaskStream | None = None,
    quiet: bool = True,
    trust: bool = False,
) -> dict[str, Any]:
    """Diagnose a run, finished or part-way, and write `diagnostics.json` into its folder.

    Time grows with the square of the number of tasks; a part that makes no sense for the method is left out.

    Parameters
    ----------
    rule, settings
        Another rule than the run's own (a `Rule`, its name, or a mapping of `name` and settings), and settings such as
        `scale=0.3`.
    examples
        At most so many of each task and split are read, drawn with the run's seed.
    only
        Only these of the parts `interference`, `zones`, `cka`, `probe` and `posterior`. Others that are in the file
        already are kept, if rule, examples and tasks are the same.
    stream
        The tasks, where the run's recipe does not say how they are made.
    quiet
        Do not tell how far it is.
    trust
        Whether Python files that the run's recipe names may be run.

    Returns
    -------
    dict
        What is in the file: by part the numbers, as plain lists, and a sentence on how to read them.

    Raises
    ------
    RunError
        The tasks are not those that the run learned, or it has learned none. Or one was forgotten meanwhile: then
        nothing is written.
    InputError
        There is no such part, or `examples` is less than 4.
    OutputError
        The file cannot be written.
    """
    if engine.count() > 1:
        raise InputError("`diagnose` is for one process: start it without `accelerate launch` or `torchrun`.")
    if unknown := [name for name in only if name not in PARTS]:
        raise UnknownName("part of the diagnostics", unknown[0], PARTS)
    if examples < 4:
        raise InputError(f"`examples` must be at least 4, got {examples}: fewer say nothing.")
    files.check_place(Path(folder) / FILE)  # not after minutes
    run = Run(folder, trust=trust)
    sources = Sources.of(folder)
    subject = subject_of(run, rule_of(run, rule, settings), stream, examples)
    found: dict[str, Any] = {
        "format": 1,
        "tasks": subject.tasks,
        "made_of": dict(sources.tasks),
        "rule": subject.rule.label,
        "since": subject.rule.since,
        "seed": subject.seed,
        "examples": subject.examples,
        "parts": {},
        "left_out": {},
    }
    asked = [name for name in PARTS if name in (only or PARTS)]
    with Progress("Diagnosing", len(asked), quiet=quiet) as progress:
        for done, name in enumerate(asked):
            progress.to(done, name, reached=True)
            try:
                found["parts"][name] = {"reading": _reading(name, subject), **COMPUTED[name](subject)}
            except _LeftOut as reason:
                found["left_out"][name] = str(reason)
    text = json.dumps(_with_earlier(subject.run.folder, found), allow_nan=False)
    files.write(subject.run.folder / FILE, text + "\n", check=sources.check)
    return found


def _reading(name: str, subject: Subject) -> str:
    """How a part is read, and which tasks are not in it because their examples are gone."""
    missing = subject.stream.missing
    if name not in OF_EXAMPLES or not missing:
        return READING[name]
    if not subject.present:
        raise _LeftOut(f"It reads examples, and none are here. {next(iter(missing.values()))}")
    return f"{READING[name]} Without examples of {', '.join(missing)}, which are not here."


def _with_earlier(folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """What was found, and of the file that is there those other parts that were computed in the same way."""
    sections = ("parts", "left_out")
    try:
        earlier = layout.diagnostics(folder)
    except RunError:  # it is replaced
        return found
    if {**earlier, **{name: {} for name in sections}} != {**found, **{name: {} for name in sections}}:
        return found
    new = [*found["parts"], *found["left_out"]]
    kept = {name: {k: v for k, v in earlier[name].items() if k not in new} | found[name] for name in sections}
    return found | {name: {part: kept[name][part] for part in PARTS if part in kept[name]} for name in sections}


# -- the parts


def _vectors(subject: Subject) -> tuple[dict[str, TaskVector], list[str]]:
    """The tasks' ΔW, and the names of the linear layers among what they change."""
    if subject.frozen:
        raise _LeftOut("The method trains nothing in the backbone, so there are no task vectors.")
    learned = [task.adapter for task in subject.learned]
    if any(isinstance(adapter.config, BottleneckConfig) for adapter in learned):
        raise _LeftOut("Bottleneck adapters are no change of weights, so there is no ΔW.")
    vectors = task_vectors(learned, since=subject.rule.since)
    names = dict.fromkeys(name for vector in vectors.values() for name in vector.entries if name[-5:] != ".bias")
    model = subject.backbone.model
    return vectors, [name for name in names if is_matrix(adapters.base_layer(model, name))]


def _interference(subject: Subject) -> dict[str, Any]:
    vectors, linear = _vectors(subject)
    if len(vectors) < 2:
        raise _LeftOut("There is one task only, and nothing to compare it with.")
    matrices = {t: TaskVector({n: v[n] for n in linear if n in v}) for t, v in vectors.items()}
    left, right = analysis.overlaps(matrices)
    pairs = {
        "cosine": analysis.cosines(vectors),
        "overlap_left": left,
        "overlap_right": right,
        "sign_conflict": analysis.sign_conflicts(vectors),
        "weighted_sign_conflict": analysis.sign_conflicts(vectors, weighted=True),
    }
    norms, layers = analysis.norms(vectors), linear if len(vectors) <= MANY else []
    upper = torch.triu_indices(len(vectors), len(vectors), 1)
    return {
        "layers": layers,
        "norms": _plain(sum(norm.square() for norm in norms.values()) ** 0.5),
        "layer_norms": [_plain(norms[name]) for name in layers],
        **{name: _plain(value.overall) for name, value in pairs.items()},
        **{f"layer_{name}": [_plain(v.layers[n][*upper]) for n in layers] for name, v in pairs.items()},
    }


def _zones(subject: Subject) -> dict[str, Any]:
    vectors, linear = _vectors(subject)
    energies = torch.zeros(len(linear), len(vectors), 3, dtype=torch.double)
    mixed, chance = torch.zeros(len(vectors), dtype=torch.double), torch.zeros(3, dtype=torch.double)
    for i, name in enumerate(linear):
        weight = matrix(adapters.base_layer(subject.backbone.model, name))
        zones = analysis.Zones.of(weight)
        chance += zones.by_chance() * weight.numel()
        for j, vector in enumerate(vectors.values()):
            if name in vector:
                energies[i, j] = zones.energies(vector[name])
                mixed[j] += zones.mixed(vector[name])
    total = energies.sum(0)
    layers = linear if len(vectors) <= MANY else []
    return {
        "layers": layers,
        "shares": _plain(total / total.sum(1, keepdim=True)),
        "mixed": _plain(mixed / total.sum(1)),
        "by_chance": _plain(chance / chance.sum()),
        "layer_shares": _plain((energies / energies.sum(2, keepdim=True))[: len(layers)]),
    }


def _cka(subject: Subject) -> dict[str, Any]:
    if subject.frozen:
        raise _LeftOut("The method trains nothing in the backbone, so its features are those of before.")
    examples = subject.encoded("test")
    rows = batches(sum(map(len, examples)), seed=subject.seed)
    if min(map(len, rows)) < 4:
        raise _LeftOut("CKA needs at least 4 test examples.")
    first = before = torch.cat(subject.tested(0))
    to_first, to_previous = [], []
    for step in range(1, len(subject.learned) + 1):
        now = torch.cat(subject.tested(step))
        to_first.append(analysis.cka(first, now, seed=subject.seed))
        to_previous.append(analysis.cka(before, now, seed=subject.seed))
        before = now
    pretrained = subject.hidden(subject.combined(0), examples)
    last = subject.hidden(subject.combined(len(subject.learned)), examples)
    layers = analysis.UnbiasedCKA()
    for some in rows:
        layers.add([layer[some] for layer in pretrained], [layer[some] for layer in last])
    names = ["embeddings", *(f"layer {i}" for i in range(1, len(last)))]
    return {
        "layers": names,
        "to_pretrained": _plain(torch.tensor(to_first)),
        "to_previous": _plain(torch.tensor(to_previous)),
        "matrix": _plain(layers.matrix()),
    }


def _probe(subject: Subject) -> dict[str, Any]:
    train, test = subject.encoded("train"), subject.encoded("test")
    labels, answers = torch.cat(subject.labels(train)), subject.labels(test)
    rows: list[list[float]] = []
    present = [subject.tasks.index(name) for name in subject.present]
    for step in range(len(subject.learned) + 1):
        if rows and subject.frozen:  # the same features at every step
            rows.append(rows[0])
            continue
        known = torch.cat(subject.features(subject.combined(step), train))
        probe = analysis.Probe.fitted(known, labels, len(subject.stream.classes))
        found = [probe.predict(each) for each in subject.tested(step)]
        rows.append([(a == b).double().mean().item() for a, b in zip(found, answers, strict=True)])
    A = torch.full((len(rows), len(subject.tasks)), math.nan, dtype=torch.double)
    A[:, present] = torch.tensor(rows, dtype=torch.double)
    return {
        "accuracy": _plain(A[:, present].mean(1)),
        "subset": _plain(A),
        "plasticity": _plain(analysis.plasticity(A)),
        "stability": _plain(analysis.stability(A)),
    }


def _posterior(subject: Subject) -> dict[str, Any]:
    posterior = TaskPosterior({task.name: task.statistics for task in subject.learned})
    combined, tasks = subject.combined(len(subject.learned)), subject.tasks
    places = [subject.stream.class_index(name) for name in tasks]
    examples = subject.encoded("test")
    true, weights, classes = [], [], []
    for name, rows in zip(subject.present, examples, strict=True):
        number = tasks.index(name)
        log_weights = posterior.log_prob(describe(subject.backbone, rows))
        acting = settled(log_weights) if combined.picks else log_weights
        logits = task_logits(subject.backbone, combined, rows, tasks, acting)
        true.append(torch.full((len(rows),), number))
        weights.append(log_weights.exp())
        classes.append(probabilities(logits, places, acting))
    tables = {
        "task": (torch.cat(weights), torch.cat(true)),
        "class": (torch.cat(classes), torch.cat(subject.labels(examples))),
    }
    found: dict[str, Any] = {
        "confusion": analysis.confusion(torch.cat(true), torch.cat(weights).argmax(1), len(tasks)).tolist()
    }
    for name, (probability, answer) in tables.items():
        best = probability.max(1)
        table = analysis.reliability(best.values, best.indices == answer)
        found[f"{name}_ece"] = _number(analysis.expected_calibration_error(table))
        found[f"{name}_bins"] = [[_number(value) for value in vars(bin).values()] for bin in table]
    return found


COMPUTED: dict[str, Callable[[Subject], dict[str, Any]]] = {
    "interference": _interference,
    "zones": _zones,
    "cka": _cka,
    "probe": _probe,
    "posterior": _posterior,
}


def _plain(values: Tensor) -> Any:
    """As lists of numbers; what is not defined is None."""
    return [_plain(value) for value in values] if values.dim() else _number(values.item())


def _number(value: float | None) -> float | int | None:
    """Six digits, which is more than the examples allow; None where it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.6g}")
