"""Turn rows into the tokens of prompts and answers.

A prompt and its answer are tokenized separately, so that no token spans both. The tokens
that a model reads before it answers are therefore the same in training and in prediction.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from perdure.errors import DataError, InputError

Truncate = Literal["left", "right", "middle"]
Turns = Sequence[Mapping[str, str]]
"""The turns of a conversation, each with its `role` and `content`."""

MARK = "\N{ASTERISM}"
"""A character that marks a place in a prompt, where a chat template is cut."""


@dataclass(frozen=True)
class Tokens:
    """The tokens of one example.

    Attributes
    ----------
    prompt
        The tokens that the model reads before it answers.
    answer
        The tokens to predict, including the end token; empty if the answer is unknown.
    joint
        The text between the prompt and the answer: a space, or an empty string.
    cut
        True if the prompt was cut to the maximum length.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...] = ()
    joint: str = ""
    cut: bool = False


@dataclass(frozen=True)
class Prompts:
    """A tokenizer with the settings for turning prompts and answers into tokens.

    Attributes
    ----------
    source
        The model's name, for error messages.
    stops
        The tokens that end an answer. The first of them is appended to an answer that has none.
    max_length
        The maximum length of a prompt in tokens; `truncate` says where longer prompts are cut.
    max_new_tokens
        The maximum length of an answer in tokens, including the end token.
    chat
        True if prompts are formatted as conversations with the tokenizer's chat template.
    system_message
        The system message for conversations that do not begin with one.
    decodes
        True if the model has a separate decoder. Prompts then get the special tokens that
        the tokenizer adds to a text.
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
        """Return the tokens of a prompt, and of its answer if that is known.

        Parameters
        ----------
        where
            A description of the row, for error messages.

        Raises
        ------
        DataError
            The prompt or the answer has no tokens, the answer has more than
            `max_new_tokens`, or the chat template rejects the conversation.
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
        """Return the tokens of an answer, including the end token.

        Raises
        ------
        DataError
            The answer has no tokens except the end token, or more than `max_new_tokens`.
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
        # Text that a template adds after the end of a turn, such as a line break, is not
        # learned: the model stops at the end token.
        end = tokens[length] if length < len(tokens) else self.stops[0]
        if length + 1 > self.max_new_tokens:
            raise DataError(
                f"{where}: the answer has {length + 1} tokens with its end, but `max_new_tokens` "
                f"is {self.max_new_tokens}, so the model could never generate it. Raise that "
                "setting, or shorten the answer."
            )
        return (*tokens[:length], end)

    def check_choices(self, choices: Sequence[str], task: str) -> None:
        """Check that no two of the answers that a task chooses from are the same to the model.

        Raises
        ------
        DataError
            Two answers differ only in white space around them or have the same tokens, or
            one has no tokens or more than `max_new_tokens`.
        """
        stripped: dict[str, str] = {}
        tokens: dict[tuple[int, ...], str] = {}
        for word in choices:
            answer = self.answer(word, "", where=f"Task `{task}`")
            other = stripped.setdefault(word.strip(), word)
            if other == word:
                other = tokens.setdefault(answer, word)
            if other != word:
                raise DataError(
                    f"Task `{task}` has the answers {other!r} and {word!r}, which are the same to "
                    f"`{self.source}`, so the first would always be chosen: make them one answer, "
                    "or choose another word for one of them."
                )

    def opening(self, beginning: str) -> tuple[int, ...]:
        """Return the tokens of the beginning of a prompt, which a causal model can continue.

        With a chat template, they end inside the user's turn.
        """
        if self.chat:
            turns = self._turns(f"{beginning}{MARK}")
            rendered = self._render(turns, "The beginning of a prompt", asks=True)
            tokens = self._plain(rendered.partition(MARK)[0])
        else:
            tokens = (*self._beginning(), *self._plain(beginning))
        # A model without a token for the beginning starts after the end of another text.
        return tokens or self.stops[:1]

    def pieces(self, text: str, length: int) -> Iterator[Tokens]:
        """Split a plain text into pieces of `length` tokens; the last piece may be shorter.

        The first tokens of a piece are its prompt, and the others are the answer to predict.
        """
        tokens = self._plain(text)
        beginning = () if self.decodes else self._beginning()
        for start in range(0, len(tokens), length):
            piece = tokens[start : start + length]
            first = len(piece) // 2 if self.decodes else 1
            if 0 < first < len(piece):
                yield Tokens((*beginning, *piece[:first]), piece[first:])

    def text(self, tokens: Sequence[int]) -> str:
        """Decode the tokens of an answer, without the end token and surrounding whitespace."""
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip()

    # -- prompts

    def _prompt(self, prompt: str | Turns, where: str) -> tuple[tuple[int, ...], str]:
        """Return the tokens of an uncut prompt, and the text between the prompt and its answer."""
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
        """Return a space, or an empty string if the tokenizer adds spaces between words itself."""
        parted = self._plain("a") + self._plain(" b") == self._plain("a b")
        return " " if parted else ""

    def _without_template(self) -> str:
        if self.tokenizer.chat_template:
            return "`chat_template` is `none`"
        return f"`{self.source}` has no chat template"

    def _beginning(self) -> tuple[int, ...]:
        """Return a tuple with the token that the tokenizer adds at the start of a text, if any."""
        beginning = self.tokenizer.bos_token_id
        if beginning is None:
            beginning = self.tokenizer.cls_token_id
        added = self.tokenizer("").input_ids
        return (beginning,) if added and added[0] == beginning else ()

    def _plain(self, text: str) -> tuple[int, ...]:
        # Not verbose: tokenizers warn about texts beyond their limit, which are cut or rejected.
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
        """Return the text that the chat template adds to a prompt for the assistant's answer."""
        turns = self._turns(prompt)
        asked = self._render(turns, where, asks=True)
        whole = self._render([*turns, {"role": "assistant", "content": answer}], where, asks=False)
        if not whole.startswith(asked):
            shared = _common_beginning(asked, whole)
            raise InputError(
                f"The chat template of `{self.source}` cannot be trained on: a conversation with "
                "its answer does not begin with the conversation that asks for it. They differ at "
                f"{asked[shared : shared + 40]!r} and {whole[shared : shared + 40]!r}. Use "
                "`chat_template: none`."
            )
        return whole[len(asked) :]

    def _check_begins(self, turn: str, answer: str) -> None:
        """Check that the assistant's turn, as formatted by the template, begins with the answer."""
        start = turn.find(answer.strip())
        before = turn if start < 0 else turn[:start]
        # Otherwise the model would learn to generate the header of its turn.
        if before.strip():
            raise InputError(
                f"The chat template of `{self.source}` has no generation prompt: it writes "
                f"{before[:40]!r} before an answer, but not at the end of a prompt. Add it there, "
                "`if add_generation_prompt`, or use `chat_template: none`."
            )

    def _render(self, turns: Turns, where: str, *, asks: bool) -> str:
        try:
            # A template may come from an untrusted source; transformers renders it in a sandbox.
            return self.tokenizer.apply_chat_template(
                list(turns), tokenize=False, add_generation_prompt=asks
            )
        except Exception as error:  # a template is a program: it may raise anything
            why = " ".join(str(error).split())[:200]
            raise DataError(
                f"{where}: the chat template of `{self.source}` rejects this conversation "
                f"({type(error).__name__}: {why}). Fix the row, or use `chat_template: none` with "
                "plain prompts."
            ) from error


def _common_beginning(left: str, right: str) -> int:
    """Return the length of the longest common prefix of two texts."""
    for number, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return number
    return min(len(left), len(right))
