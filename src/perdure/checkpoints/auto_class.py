"""The class of transformers that loads a model whole, for the snippet of a model card."""

from collections.abc import Mapping
from typing import Any

# The end of an architecture's name, and the class that loads it. For another (such as `…ForConditionalGeneration`,
# which is many things) the architecture itself does.
AUTO = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForMultipleChoice": "AutoModelForMultipleChoice",
    "ForImageClassification": "AutoModelForImageClassification",
}
# Types whose classes are named like these, but load from no such table: they classify sounds, or answer about images.
NOT_IN_TABLES = (
    *(
        "data2vec-audio",
        "hubert",
        "sew",
        "sew-d",
        "unispeech",
        "unispeech-sat",
        "wav2vec2",
        "wav2vec2-bert",
    ),
    *("wav2vec2-conformer", "wavlm", "blip", "layoutlm", "tapas", "vilt", "mistral4"),
)
PARTS = (
    "EncoderModel",
    "DecoderModel",
    "TextModel",
    "VisionModel",
    "MTModel",
    "HeadModel",
    "HeadsModel",
)
"""Ends of names of models that are part of another, or have a head: `AutoModel` loads something else."""
# Types whose `…ForConditionalGeneration` turns a text into a text.
SEQ2SEQ = (
    *(
        "bart",
        "bigbird_pegasus",
        "blenderbot",
        "blenderbot-small",
        "fsmt",
        "led",
        "longt5",
        "m2m_100",
        "marian",
    ),
    *(
        "mbart",
        "mt5",
        "mvp",
        "nllb-moe",
        "pegasus",
        "pegasus_x",
        "plbart",
        "prophetnet",
        "switch_transformers",
    ),
    *("t5", "umt5"),
)
TASKS = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""The class that a model is loaded with, by the `task_type` of an adapter."""


def of_task(task: Any) -> str | None:
    """Return the class for an adapter's `task_type`, or None if it does not say."""
    return TASKS.get(task) if isinstance(task, str) else None


def of_config(config: Mapping[str, Any]) -> str:
    """Return the class for a model's configuration."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else ""
    if not isinstance(name, str) or not name.isidentifier():
        return "AutoModel"
    kind = config.get("model_type")
    if name.endswith("ForConditionalGeneration") and kind in SEQ2SEQ:
        return "AutoModelForSeq2SeqLM"
    if name.endswith("Model") and not name.endswith(PARTS):
        return "AutoModel"
    for end, auto in AUTO.items():
        if (
            name.endswith(end)
            and not name.endswith("WithLMHeadModel")
            and kind not in NOT_IN_TABLES
        ):
            return auto
    return name
