"""What stock libraries answer with an exported folder, and what perdure answers with its heads."""

from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from perdure import Model
from perdure.data.task import Rows
from perdure.evaluation.score import task_logits
from perdure.models.examples import Examples
from perdure.runs.export_heads import Heads, computed_heads, replaced

Answer = tuple[str, float]
"""A label and its probability."""


def of_perdure(model: Model, rows: Rows, heads: Heads) -> list[Answer]:
    """Return what a run's model answers with the heads of an export, under one softmax."""
    examples: Examples = model.backbone.prepare(rows)
    with replaced(model.backbone, computed_heads(model.system, heads)):
        logits = task_logits(model.backbone, model.combined, examples, model.classes)
    labels = [label for classes in model.classes.values() for label in classes]
    return _answers(torch.cat(list(logits.values()), dim=1), labels)


def of_pipeline(folder: Path, kind: str, inputs: Sequence[object], **options: object) -> list:
    """Return what transformers' pipeline answers for `text` or `image`."""
    classify = transformers.pipeline(f"{kind}-classification", str(folder), device="cpu")
    answers = []
    for answer in classify(list(inputs), top_k=1, **options):
        (first,) = answer if isinstance(answer, list) else (answer,)
        answers.append((first["label"], first["score"]))
    return answers


def of_sentence_transformer(folder: Path, texts: Sequence[str]) -> list[Answer]:
    """Return what sentence-transformers answers, which gives the logits."""
    from sentence_transformers import SentenceTransformer

    labels = transformers.AutoConfig.from_pretrained(folder).id2label
    logits = SentenceTransformer(str(folder), device="cpu").encode(list(texts))
    return _answers(torch.tensor(logits), [labels[number] for number in range(len(labels))])


def _answers(logits: torch.Tensor, labels: Sequence[str]) -> list[Answer]:
    best = logits.detach().softmax(1).max(1)
    return [
        (labels[number], probability)
        for number, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def agree(ours: Sequence[Answer], theirs: Sequence[Answer], *, tolerance: float = 1e-4) -> None:
    """Raise an error unless labels are the same, and probabilities up to rounding."""
    assert [label for label, _ in theirs] == [label for label, _ in ours]
    torch.testing.assert_close(
        torch.tensor([probability for _, probability in theirs]),
        torch.tensor([probability for _, probability in ours]),
        rtol=0,
        atol=tolerance,
    )
