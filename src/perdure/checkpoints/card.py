"""What a merger did, as a value, as a few lines for the terminal, and as a model card."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from perdure.checkpoints.fit import Fitted
from perdure.errors import printable


@dataclass(frozen=True)
class MergedAdapter:
    """An adapter that went into a merger."""

    name: str
    settings: str
    layers: int

    @classmethod
    def of(cls, adapter: Fitted) -> "MergedAdapter":
        """Of an adapter that was fitted to the base."""
        return cls(adapter.name, adapter.settings, len(adapter.factors))


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What was, or with `dry_run` would be, written.

    Attributes
    ----------
    layers
        How many layers of the base change.
    saved
        The tensors that were taken whole from adapters.
    error
        ‖ΔW - written ΔW‖ / ‖ΔW‖ over all layers (Frobenius); nothing for an adapter that is not written yet. A model
        holds all of ΔW, rounded once with W to the type of the base.
    notes
        What a user should know, a sentence each.
    loads_with
        The class of transformers that loads the model, or the base for the adapter.
    size, free, memory
        In bytes: of the output, on the disk, and an estimate of what the process needs.
    """

    output: Path
    form: str
    base: str
    rule: str
    settings: Mapping[str, Any]
    adapters: tuple[MergedAdapter, ...]
    layers: int
    saved: tuple[str, ...]
    error: float | None
    rank: int | None
    size: int
    free: int
    memory: int
    notes: tuple[str, ...]
    loads_with: str
    written: bool = False

    @property
    def label(self) -> str:
        """The rule with its settings."""
        own = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        return f"{self.rule}({own})" if own else self.rule

    def __str__(self) -> str:
        lines = [
            f"{self.label} of {_adapters(len(self.adapters))}: {self.layers} layers change.",
            f"  base: {self.base}",
        ]
        lines += [f"  {part.name}: {part.settings}, {part.layers} layers" for part in self.adapters]
        if self.saved:
            lines.append(f"  taken whole: {', '.join(self.saved)}")
        lines += self.notes
        if self.form == "adapter" and self.error is not None:
            lines.append(f"Relative truncation error (Frobenius): {self.error:.2e}")
        if self.written:
            lines.append(f"Written ({_mb(self.size)}): {self.output}")
        else:
            lines.append(
                f"Would write {_mb(self.size)} as {self.form}; {_mb(self.free)} are free on the disk."
            )
            lines.append(f"Would need about {_mb(self.memory)} of memory.")
        return "\n".join(map(printable, lines))


def card(merged: Merged) -> str:
    """A model card, safe whoever chose the names: README.md with its YAML front matter (JSON texts are YAML texts)."""
    library = "transformers" if merged.form == "model" else "peft"
    front = [
        f"library_name: {library}",
        f"base_model: {json.dumps(merged.base)}",
        f"base_model_relation: {'merge' if merged.form == 'model' else 'adapter'}",
        "tags:",
        *(
            f"- {tag}"
            for tag in ("merge", "perdure", *(["lora"] if merged.form == "adapter" else []))
        ),
    ]
    rows = [f"| {code(part.name)} | {part.settings} | {part.layers} |" for part in merged.adapters]
    settings = (
        ", ".join(code(f"{name}={value}") for name, value in merged.settings.items())
        or "its defaults"
    )
    lines = [
        f"# {code(merged.output.name)}",
        "",
        f"{_adapters(len(merged.adapters))}, merged into {code(merged.base)} with the rule {code(merged.rule)} "
        f"({settings}) by perdure {version('perdure')}. {merged.layers} layers change.",
        "",
        "| adapter | LoRA | layers |",
        "|---|---|---|",
        *rows,
        "",
    ]
    if merged.saved:
        lines += [f"Taken whole from an adapter: {', '.join(map(code, merged.saved))}.", ""]
    if merged.form == "adapter":
        lines += [f"Relative truncation error (Frobenius, all layers): {merged.error:.2e}.", ""]
    for note in merged.notes:
        lines += [_escaped(note), ""]
    lines += ["## Loading", "", "```python", *_loading(merged), "```", ""]
    return "\n".join(["---", *front, "---", "", *lines])


def code(text: str) -> str:
    """Return a name that may come from a stranger as code in Markdown: nothing in it is HTML, a link or a column."""
    text = printable(text).replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if text.startswith("`") or text.endswith("`") or not text.strip() else ""
    return f"{fence}{space}{text}{space}{fence}"


def _escaped(sentence: str) -> str:
    """Return a sentence of ours, with the names that stand in backticks as code, and the rest as plain text."""
    parts = printable(sentence).split("`")
    if len(parts) % 2 == 0:  # a name has a backtick itself
        return code(sentence)
    plain = [re.sub(r"([\\*_{}\[\]<>#|!&])", r"\\\1", part) for part in parts[::2]]
    names = [code(part) for part in parts[1::2]]
    return "".join(text for pair in zip(plain, [*names, ""], strict=True) for text in pair)


def _loading(merged: Merged) -> list[str]:
    place = json.dumps(merged.output.name)  # where it lies is nobody else's business
    name = merged.loads_with
    if merged.form == "model":
        return [f"from transformers import {name}", "", f"model = {name}.from_pretrained({place})"]
    return [
        "from peft import PeftModel",
        f"from transformers import {name}",
        "",
        f"base = {name}.from_pretrained({json.dumps(merged.base)})",
        f"model = PeftModel.from_pretrained(base, {place})",
    ]


def _adapters(count: int) -> str:
    return "1 LoRA adapter" if count == 1 else f"{count} LoRA adapters"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
