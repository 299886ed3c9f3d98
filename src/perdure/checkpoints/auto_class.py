"""Functions that choose the transformers class for the code snippet in a model card."""

from collections.abc import Mapping

# The suffix of an architecture's name, and the class that loads it. If no suffix matches
# (as with `…ForConditionalGeneration`, which could be one of several), the architecture
# itself is used.
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
# Model types whose classes have such names, but which those `AutoModel…` classes cannot
# load: they classify sounds, or answer questions about images. (This is a tuple, not a
# set, because the type in a damaged configuration could be a list, which is not
# hashable.)
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
# Suffixes of models that are a component of another model, or have a head. `AutoModel`
# would load a different class for their configuration.
PARTS = (
    "EncoderModel",
    "DecoderModel",
    "TextModel",
    "VisionModel",
    "MTModel",
    "HeadModel",
    "HeadsModel",
)
# Model types whose `…ForConditionalGeneration` class is a text-to-text model.
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
# The transformers class for each `task_type` in an adapter's configuration.
TASKS = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}


def of_task(task: object) -> str | None:
    """Return the transformers class for an adapter's `task_type`, or None if it is unknown."""
    return TASKS.get(task) if isinstance(task, str) else None


def of_config(config: Mapping[str, object]) -> str:
    """Return the transformers class that loads a model with this configuration."""
    architectures = config.get("architectures")
    name = ""
    if isinstance(architectures, list) and architectures:
        name = architectures[0]
    # The name is used in the Python code of a model card, and may come from an untrusted source.
    if not isinstance(name, str) or not name.isidentifier():
        return "AutoModel"

    kind = config.get("model_type")
    if name.endswith("ForConditionalGeneration") and kind in SEQ2SEQ:
        return "AutoModelForSeq2SeqLM"
    if name.endswith("Model") and not name.endswith(PARTS):
        return "AutoModel"
    # `…WithLMHeadModel` is an older name for several kinds of language models.
    if name.endswith("WithLMHeadModel") or kind in NOT_IN_TABLES:
        return name
    for suffix, auto in AUTO.items():
        if name.endswith(suffix):
            return auto
    return name
