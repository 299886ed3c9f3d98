"""Turn a row into the tokens of a prompt and of its answer: templates, cutting, and the end.

Prompt and answer are tokenized apart, so that no token spans both: what a model reads before it
answers is the same in training and afterwards.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from perdure.errors import DataError, InputError

Truncate = Literal["left", "right", "middle"]
Turns = Sequence[Mapping[str, str]]
"""The turns of a conversation, each with its `role` and `content`."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of one example.

    Attributes
    ----------
    prompt
        What the model reads before it answers.
    answer
        The tokens to predict, with the end-of-sequence token; empty if unknown.
    joint
        What stands between a prompt and its answer: a space, unless one of them has it already.
    cut
        Whether the prompt was longer than the model may read.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...] = ()
    joint: str = ""
    cut: bool = False


@dataclass(frozen=True)
class Prompts:
    """A tokenizer, with the settings for turning prompts and answers into tokens.

    Attributes
    ----------
    source
        The model's name, for messages.
    stops
        The tokens that end an answer; the first of them is appended to an answer that has none.
    max_length
        The longest prompt in tokens; a longer one is cut at the side that `truncate` names.
    max_new_tokens
        The longest answer in tokens, with its end.
    chat
        Whether prompts are turns of a conversation, rendered by the tokenizer's chat template.
    system_message
        The first turn of each conversation that has no system message.
    decodes
        Whether the model has a separate decoder: the prompt then ends as the tokenizer ends a text.
    """

    tokenizer: Any
    source: str
    stops: tuple[int, ...]
    max_length: int
    max_new_tokens: int
    truncate: Truncate
    chat: bool
    system_message: str | None
    decodes: bool

    def tokens(self, prompt: str | Turns, answer: str | None, where: str) -> Tokens:
        """Return the tokens of a prompt and of its answer, if that is known.

        Parameters
        ----------
        where
            The row, for messages.

        Raises
        ------
        DataError
            The prompt has no token, the answer none or more than `max_new_tokens`, or the chat
            template refuses it.
        """
        before, joint = self._prompt(prompt, where)
        if set(before) <= set(self.tokenizer.all_special_ids):
            raise DataError(
                f"{where}: the tokenizer of `{self.source}` makes no token of the prompt. "
                "Complete the row or leave it out."
            )
        after: tuple[int, ...] = ()
        if answer is not None:
            after = self.answer(answer, joint, prompt, where)
        kept = self._cut(before)
        return Tokens(kept, after, joint, cut=len(kept) < len(before))

    def answer(
        self, answer: str, joint: str, prompt: str | Turns = "", where: str = "The answer"
    ) -> tuple[int, ...]:
        """Return the tokens of an answer, the last of which ends it.

        Raises
        ------
        DataError
            There is no token but the end, or there are more than `max_new_tokens`.
        """
        if self.chat:
            written = self._answer_turn(prompt, answer, where)
            self._check_begins(written, answer)
            tokens = self._plain(written)
        else:
            tokens = self._plain(joint + answer)
        length = next((i for i, token in enumerate(tokens) if token in self.stops), len(tokens))
        if length == 0 or not answer.strip():
            raise DataError(
                f"{where}: the answer {answer[:60]!r} has no token, so there is nothing to learn. "
                "Complete the row or leave it out."
            )
        # What a template writes behind the end of a turn, such as a line break, is not learned:
        # the model stops at the end.
        end = tokens[length] if length < len(tokens) else self.stops[0]
        if length + 1 > self.max_new_tokens:
            raise DataError(
                f"{where}: the answer has {length + 1} tokens with its end, but `max_new_tokens` "
                f"is {self.max_new_tokens}: the model could never give it. Raise that setting, or "
                "shorten the answer."
            )
        return (*tokens[:length], end)

    def pieces(self, text: str, length: int) -> Iterator[Tokens]:
        """Yield pieces of `length` tokens of a plain text, the last of which may be shorter.

        The prompt is a piece's beginning, and the answer is the rest, which is to be predicted.
        """
        tokens = self._plain(text)
        beginning = () if self.decodes else self._beginning()
        for start in range(0, len(tokens), length):
            piece = tokens[start : start + length]
            first = len(piece) // 2 if self.decodes else 1
            if 0 < first < len(piece):
                yield Tokens((*beginning, *piece[:first]), piece[first:])

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of an answer's tokens, without its end and the space around it."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip()

    # -- prompts

    def _prompt(self, prompt: str | Turns, where: str) -> tuple[tuple[int, ...], str]:
        """Return the tokens of a whole prompt, and what stands between it and its answer."""
        if self.chat:
            rendered = self._render(self._turns(prompt), where, asks=True)
            return self._plain(rendered), ""
        if not isinstance(prompt, str):
            raise InputError(
                f"{where}: the prompt is a conversation, but {self._without_template()}. Give the "
                "prompt as one text, in the columns `prompt` and `completion`."
            )
        if self.decodes:
            return tuple(self.tokenizer(prompt).input_ids), ""
        joint = "" if prompt[-1:].isspace() else self._space()
        return (*self._beginning(), *self._plain(prompt)), joint

    def _space(self) -> str:
        """Return the space that joins two words, unless the tokenizer puts it there itself."""
        parted = self._plain("a") + self._plain(" b") == self._plain("a b")
        return " " if parted else ""

    def _without_template(self) -> str:
        if self.tokenizer.chat_template:
            return "`chat_template` is `none`"
        return f"`{self.source}` has no chat template"

    def _beginning(self) -> tuple[int, ...]:
        """Return the token that the tokenizer puts before a text, if it does."""
        beginning = self.tokenizer.bos_token_id
        if beginning is None:
            beginning = self.tokenizer.cls_token_id
        added = self.tokenizer("").input_ids
        return (beginning,) if added and added[0] == beginning else ()

    def _plain(self, text: str) -> tuple[int, ...]:
        # A tokenizer warns of texts beyond its own limit; here they are cut, or refused.
        return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids)

    def _cut(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        surplus = len(tokens) - self.max_length
        if surplus <= 0:
            return tokens
        if self.truncate == "left":
            return tokens[surplus:]
        if self.truncate == "right":
            return tokens[: self.max_length]
        first = (self.max_length + 1) // 2
        return tokens[:first] + tokens[first + surplus :]

    # -- conversations

    def _turns(self, prompt: str | Turns) -> list[Mapping[str, str]]:
        turns: list[Mapping[str, str]] = []
        if isinstance(prompt, str):
            turns.append({"role": "user", "content": prompt})
        else:
            turns += prompt
        if self.system_message and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": self.system_message})
        return turns

    def _answer_turn(self, prompt: str | Turns, answer: str, where: str) -> str:
        """Return what the chat template adds for the assistant's turn: the answer and its end."""
        turns = self._turns(prompt)
        asked = self._render(turns, where, asks=True)
        whole = self._render([*turns, {"role": "assistant", "content": answer}], where, asks=False)
        if not whole.startswith(asked):
            shared = _common_beginning(asked, whole)
            raise InputError(
                f"The chat template of `{self.source}` cannot be trained on: a conversation with "
                "its answer does not begin with the conversation that asks for it. They part at "
                f"{asked[shared : shared + 40]!r} and {whole[shared : shared + 40]!r}. Use "
                "`chat_template: none`."
            )
        return whole[len(asked) :]

    def _check_begins(self, turn: str, answer: str) -> None:
        """Check that the assistant's turn, as a template writes it, begins with the answer."""
        start = turn.find(answer.strip())
        before = turn if start < 0 else turn[:start]
        # Otherwise the model would learn to say the head of its own turn.
        if before.strip():
            raise InputError(
                f"The chat template of `{self.source}` has no generation prompt: it writes "
                f"{before[:40]!r} before an answer, but not where it asks for one. Write it there "
                "too, `if add_generation_prompt`, or use `chat_template: none`."
            )

    def _render(self, turns: Turns, where: str, *, asks: bool) -> str:
        try:
            # A template may be a stranger's: transformers renders it in jinja's sandbox.
            return self.tokenizer.apply_chat_template(
                list(turns), tokenize=False, add_generation_prompt=asks
            )
        except Exception as error:  # a template is a program: it may raise anything
            why = " ".join(str(error).split())[:200]
            raise DataError(
                f"{where}: the chat template of `{self.source}` does not take this conversation "
                f"({type(error).__name__}: {why}). Mend the row, or use `chat_template: none` with "
                "plain prompts."
            ) from error


def _common_beginning(left: str, right: str) -> int:
    """Return the length of the prefix that both texts share."""
    for number, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return number
    return min(len(left), len(right))
