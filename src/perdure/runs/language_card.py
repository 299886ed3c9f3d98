"""The part of a language model's card about asking it, and its answers."""

import json
from dataclasses import dataclass

from perdure.models.backbone import Backbone
from perdure.models.language import LanguageModel

CAUSAL = "AutoModelForCausalLM"
SEQ2SEQ = "AutoModelForSeq2SeqLM"


@dataclass(frozen=True)
class Asking:
    """The way to ask a language model.

    Attributes
    ----------
    decodes
        True if a decoder of its own gives the answer.
    chat
        True if prompts are turns of a conversation, by the tokenizer's chat template.
    has_template
        True if the tokenizer has a chat template, even if it is left aside.
    system_message
        The first turn of each conversation.
    max_new_tokens
        The longest answer in tokens.
    """

    decodes: bool
    chat: bool
    has_template: bool
    system_message: str | None
    max_new_tokens: int

    @property
    def pipeline(self) -> str:
        """The hub's name for what the model does."""
        return "text2text-generation" if self.decodes else "text-generation"

    def sentences(self, *, closed: bool) -> list[str]:
        """Describe what a stock model does differently, or needs to be told.

        `closed`: there are tasks whose answers are a closed set.
        """
        sentences = []
        if closed:
            sentences.append(
                "`perdure predict` ranks the answers of a task that lists them, so that it always "
                "gives one of these; this folder writes, and may write something else."
            )
        if self.has_template and not self.chat:
            sentences.append(
                "It was trained on plain prompts: leave the tokenizer's chat template aside."
            )
        return sentences

    def use(self, name: str, base: str | None) -> list[str]:
        """Return Python code that asks the model once; `base` is the model that an adapter is
        of.
        """
        auto = SEQ2SEQ if self.decodes else CAUSAL
        lines = [f"from transformers import {auto}, AutoTokenizer", ""]
        if base is None:
            lines += [
                f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(name)})",
                f"model = {auto}.from_pretrained({json.dumps(name)})",
            ]
        else:
            lines.insert(0, "from peft import PeftModel")
            lines += [
                f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(base)})",
                f"model = {auto}.from_pretrained({json.dumps(base)})",
                f"model = PeftModel.from_pretrained(model, {json.dumps(name)})",
            ]
        # a folder of its own says how it generates, an adapter leaves that to the base
        how = ""
        if base is not None:
            how = f", do_sample=False, max_new_tokens={self.max_new_tokens}"
        lines += [
            *self._prompt(),
            f"tokens = model.generate(**prompt{how})[0]",
        ]
        answer = "tokens" if self.decodes else 'tokens[prompt["input_ids"].shape[1] :]'
        return [*lines, f"print(tokenizer.decode({answer}, skip_special_tokens=True).strip())"]

    def _prompt(self) -> list[str]:
        if not self.chat:
            return ['prompt = tokenizer("a prompt", return_tensors="pt")']
        turns = [{"role": "user", "content": "a prompt"}]
        if self.system_message:
            turns.insert(0, {"role": "system", "content": self.system_message})
        return [
            f"turns = {json.dumps(turns, ensure_ascii=False)}",
            "prompt = tokenizer.apply_chat_template(",
            '    turns, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
        ]


def asking(backbone: Backbone) -> Asking | None:
    """Return how a backbone is asked; None if it answers by heads."""
    if not isinstance(backbone, LanguageModel):
        return None
    prompts = backbone.prompts
    return Asking(
        decodes=backbone.decodes,
        chat=prompts.chat,
        has_template=bool(prompts.tokenizer.chat_template),
        system_message=prompts.system_message,
        max_new_tokens=prompts.max_new_tokens,
    )
