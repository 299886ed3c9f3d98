"""The part of a model card that describes how to prompt a language model."""

import json
from dataclasses import dataclass

from perdure.models.backbone import Backbone
from perdure.models.language import LanguageModel

CAUSAL = "AutoModelForCausalLM"
SEQ2SEQ = "AutoModelForSeq2SeqLM"


@dataclass(frozen=True)
class Asking:
    """The information that is needed to prompt a language model.

    Attributes
    ----------
    decodes
        True if the model is an encoder-decoder, whose decoder generates the answer.
    chat
        True if prompts are formatted as conversations, with the tokenizer's chat template.
    has_template
        True if the tokenizer has a chat template, even if the template is not used.
    system_message
        The system message at the beginning of each conversation; None for none.
    max_new_tokens
        The maximum length of an answer, in tokens.
    """

    decodes: bool
    chat: bool
    has_template: bool
    system_message: str | None
    max_new_tokens: int

    @property
    def pipeline(self) -> str:
        """The hub's name for the model's task."""
        return "text2text-generation" if self.decodes else "text-generation"

    def sentences(self, *, closed: bool) -> list[str]:
        """Return sentences that explain how to prompt a stock model and how its answers differ.

        `closed` is True if the answers of some tasks come from a closed set.
        """
        sentences = []
        if closed:
            sentences.append(
                "`perdure predict` ranks the answers of a task that lists them, so it always "
                "returns one of these; a stock model generates text, and may return anything else."
            )
        if self.has_template and not self.chat:
            sentences.append(
                "It was trained on plain prompts: do not use the tokenizer's chat template."
            )
        return sentences

    def use(self, name: str, base: str | None) -> list[str]:
        """Return Python code that loads the model and prompts it once.

        `base` is the base model of an adapter; None for a stock checkpoint.
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
        # a stock checkpoint has its own generation settings, an adapter uses those of the base
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
    """Return the information needed to prompt a backbone; None if it answers by heads."""
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
