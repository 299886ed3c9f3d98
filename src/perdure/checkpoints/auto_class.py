"""The class of transformers that loads a model, for the snippet of a model card."""

from collections.abc import Mapping

# The end of an architecture's name, and the class that loads it. Where no end fits (such as
# `…ForConditionalGeneration`, which may be one of several), the architecture itself is named.
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
# Types whose classes have such names but are in none of these tables: they classify sounds, or
# answer questions about images. (Tuples, not sets: in a damaged configuration the type may be a
# list, which a set cannot look up.)
NOT_IN_TABLES = (
    "blip",
    "data2vec-audio",
    "hubert",
    "layoutlm",
    "mistral4",
    "sew",
    "sew-d",
    "tapas",
    "unispeech",
    "unispeech-sat",
    "vilt",
    "wav2vec2",
    "wav2vec2-bert",
    "wav2vec2-conformer",
    "wavlm",
)
# Ends of names of models that are a component of another, or have a head: `AutoModel` would load
# another class for their configuration.
PARTS = (
    "EncoderModel",
    "DecoderModel",
    "TextModel",
    "VisionModel",
    "MTModel",
    "HeadModel",
    "HeadsModel",
)
# Types whose `…ForConditionalGeneration` turns a text into a text.
SEQ2SEQ = (
    "bart",
    "bigbird_pegasus",
    "blenderbot",
    "blenderbot-small",
    "fsmt",
    "led",
    "longt5",
    "m2m_100",
    "marian",
    "mbart",
    "mt5",
    "mvp",
    "nllb-moe",
    "pegasus",
    "pegasus_x",
    "plbart",
    "prophetnet",
    "switch_transformers",
    "t5",
    "umt5",
)
# The class for the `task_type` of an adapter.
TASKS = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}


def of_task(task: object) -> str | None:
    """Return the class for an adapter's `task_type`, or None if the adapter states none."""
    return TASKS.get(task) if isinstance(task, str) else None


def of_config(config: Mapping[str, object]) -> str:
    """Return the class for a model's configuration."""
    architectures = config.get("architectures")
    name = ""
    if isinstance(architectures, list) and architectures:
        name = architectures[0]
    # The name goes into the Python code of a model card, and may come from a stranger.
    if not isinstance(name, str) or not name.isidentifier():
        return "AutoModel"

    kind = config.get("model_type")
    if name.endswith("ForConditionalGeneration") and kind in SEQ2SEQ:
        return "AutoModelForSeq2SeqLM"
    if name.endswith("Model") and not name.endswith(PARTS):
        return "AutoModel"
    # `…WithLMHeadModel` is an older name of several kinds of language models.
    if name.endswith("WithLMHeadModel") or kind in NOT_IN_TABLES:
        return name
    for end, auto in AUTO.items():
        if name.endswith(end):
            return auto
    return name
