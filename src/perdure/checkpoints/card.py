"""The summary of a merge, which can be printed in the terminal or written as a model card."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from perdure.checkpoints.fit import Fitted
from perdure.errors import printable


@dataclass(frozen=True)
class MergedAdapter:
    """One of the merged adapters, as listed in the summary of the merge."""

    name: str
    settings: str
    layers: int

    @classmethod
    def of(cls, adapter: Fitted) -> "MergedAdapter":
        """Create the summary of an adapter that has been matched to the base model."""
        return cls(adapter.name, adapter.settings, len(adapter.factors))


@dataclass(frozen=True, kw_only=True)
class Merged:
    """A summary of the model or adapter that a merge has written or, with `dry_run`, would write.

    Attributes
    ----------
    layers
        The number of layers of the base model that change.
    saved
        The names of fully trained tensors that are copied from adapters.
    error
        The truncation error ‖ΔW - written ΔW‖ / ‖ΔW‖ over all layers (Frobenius norm), or
        None for an adapter that has not been written yet. It is 0 for a model, which
        includes all of ΔW; W + ΔW is then rounded once to the dtype of the base model.
    notes
        Warnings for the user, in full sentences.
    loads_with
        The transformers class that loads the model, or the base model of the adapter.
    size, free, memory
        The size of the output, the free disk space, and an estimate of the memory needed,
        in bytes.
    """

    output: Path
    form: str
    base: str
    rule: str
    settings: Mapping[str, object]
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
        """The name of the rule, followed by its settings in parentheses."""
        if not self.settings:
            return self.rule
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        return f"{self.rule}({settings})"

    def __str__(self) -> str:
        adapters = _adapters(len(self.adapters))
        lines = [
            f"{self.label} of {adapters}: {self.layers} layers change.",
            f"  base: {self.base}",
        ]
        for adapter in self.adapters:
            lines.append(f"  {adapter.name}: {adapter.settings}, {adapter.layers} layers")
        if self.saved:
            lines.append(f"  fully trained: {', '.join(self.saved)}")
        lines += self.notes
        if self.form == "adapter" and self.error is not None:
            lines.append(f"Relative truncation error (Frobenius): {self.error:.2e}")
        if self.written:
            lines.append(f"Written ({_mb(self.size)}): {self.output}")
        else:
            lines += [
                f"Would write {_mb(self.size)} as {self.form}; "
                f"{_mb(self.free)} are free on the disk.",
                f"Would need about {_mb(self.memory)} of memory.",
            ]
        # Names may come from untrusted files, with control sequences for the terminal.
        return "\n".join(map(printable, lines))


def card(merged: Merged) -> str:
    """Return a model card (README.md with YAML front matter), with untrusted names escaped."""
    lines = [
        *_front_matter(merged),
        f"# {code(merged.output.name)}",
        "",
        _summary(merged),
        "",
        "| adapter | LoRA | layers |",
        "|---|---|---|",
    ]
    for adapter in merged.adapters:
        lines.append(f"| {code(adapter.name)} | {adapter.settings} | {adapter.layers} |")
    lines.append("")
    if merged.saved:
        names = ", ".join(map(code, merged.saved))
        lines += [f"Fully trained, and copied from an adapter: {names}.", ""]
    if merged.form == "adapter":
        lines += [
            f"Relative truncation error (Frobenius, all layers): {merged.error:.2e}.",
            "",
        ]
    for note in merged.notes:
        lines += [_escaped(note), ""]
    lines += [
        "## Loading",
        "",
        "```python",
        *_loading(merged),
        "```",
        "",
    ]
    return "\n".join(lines)


def _front_matter(merged: Merged) -> list[str]:
    """Return the lines of the YAML front matter, with the keys that the hub uses."""
    is_model = merged.form == "model"
    lines = [
        "---",
        f"library_name: {'transformers' if is_model else 'peft'}",
        # A JSON string is valid YAML, and no name can break out of it.
        f"base_model: {json.dumps(merged.base)}",
        f"base_model_relation: {'merge' if is_model else 'adapter'}",
        "tags:",
        "- merge",
        "- perdure",
    ]
    if not is_model:
        lines.append("- lora")
    return [*lines, "---", ""]


def _summary(merged: Merged) -> str:
    adapters = _adapters(len(merged.adapters))
    base = code(merged.base)
    rule = code(merged.rule)
    settings = [code(f"{name}={value}") for name, value in merged.settings.items()]
    return (
        f"{adapters}, merged into {base} "
        f"with the rule {rule} ({', '.join(settings) or 'its defaults'}) "
        f"by perdure {version('perdure')}. "
        f"{merged.layers} layers change."
    )


def code(text: str) -> str:
    """Return a possibly untrusted name as a Markdown code span.

    No character of the name is interpreted as HTML, as a link or as a column separator.
    """
    # In a table, a `|` ends the column, even within code.
    text = printable(text).replace("|", "\\|")
    # A code span ends with the number of backticks it starts with. Use more than the text has.
    longest = 0
    for run in re.findall("`+", text):
        longest = max(longest, len(run))
    fence = "`" * (longest + 1)
    # Spaces separate backticks in the text from the fence. Markdown does not render the spaces.
    touches_fence = text.startswith("`") or text.endswith("`")
    is_blank = not text.strip()
    if touches_fence or is_blank:
        text = f" {text} "
    return f"{fence}{text}{fence}"


def _escaped(sentence: str) -> str:
    """Return a note as Markdown, with names in backticks as code and all other text escaped."""
    pieces = printable(sentence).split("`")
    if len(pieces) % 2 == 0:
        # A name contains a backtick, so it is impossible to tell names and text apart.
        return code(sentence)
    # Backticks alternately open and close, so every second piece is a name.
    escaped: list[str] = []
    for i, piece in enumerate(pieces):
        is_name = i % 2 == 1
        if is_name:
            escaped.append(code(piece))
        else:
            escaped.append(re.sub(r"([\\*_{}\[\]<>#|!&])", r"\\\1", piece))
    return "".join(escaped)


def _loading(merged: Merged) -> list[str]:
    """Return the lines of Python code that load the merged model or adapter."""
    # Use only the name of the folder, because its path is private.
    folder = json.dumps(merged.output.name)
    loader = merged.loads_with
    if merged.form == "model":
        return [
            f"from transformers import {loader}",
            "",
            f"model = {loader}.from_pretrained({folder})",
        ]
    return [
        "from peft import PeftModel",
        f"from transformers import {loader}",
        "",
        f"base = {loader}.from_pretrained({json.dumps(merged.base)})",
        f"model = PeftModel.from_pretrained(base, {folder})",
    ]


def _adapters(count: int) -> str:
    return "1 LoRA adapter" if count == 1 else f"{count} LoRA adapters"


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
