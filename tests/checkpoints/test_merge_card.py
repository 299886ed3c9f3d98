"""The model card of a merger: its snippet loads what was merged, and names in it are text."""

import re
from pathlib import Path

import pytest
import torch
import transformers
from peft_folders import TINY, adapter, base
from transformers.models.auto import modeling_auto

from perdure import merge_checkpoint
from perdure.checkpoints import auto_class
from perdure.checkpoints.card import code

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
BERT = transformers.BertConfig(vocab_size=64, **SMALL)
T5 = transformers.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
WHISPER = transformers.WhisperConfig(
    **{
        "vocab_size": 64,
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "pad_token_id": 0,
    },
    **{
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
    },
    **{"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
)
BASES = [
    ("LlamaForCausalLM", TINY["llama"][0](), "AutoModelForCausalLM", ["q_proj"]),
    ("GPT2LMHeadModel", TINY["gpt2"][0](), "AutoModelForCausalLM", ["c_attn"]),
    ("ViTForImageClassification", TINY["vit"][0](), "AutoModelForImageClassification", ["q_proj"]),
    ("BertForSequenceClassification", BERT, "AutoModelForSequenceClassification", ["query"]),
    ("BertForMaskedLM", BERT, "AutoModelForMaskedLM", ["query"]),
    ("BertModel", BERT, "AutoModel", ["query"]),
    ("T5ForConditionalGeneration", T5, "AutoModelForSeq2SeqLM", ["q"]),
    ("WhisperForConditionalGeneration", WHISPER, "WhisperForConditionalGeneration", ["q_proj"]),
]


def snippet(folder: Path) -> str:
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[0]


@pytest.mark.parametrize("form", ["model", "adapter"])
@pytest.mark.parametrize(("architecture", "config", "loaded", "layers"), BASES)
def test_the_snippet_loads_the_whole_model(
    tmp_path, monkeypatch, *, architecture, config, loaded, layers, form
):
    kind = getattr(transformers, architecture)
    torch.manual_seed(0)
    kind._from_config(config).save_pretrained(tmp_path / "base")
    place = adapter(tmp_path / "base", tmp_path / "lora", seed=1, auto=kind, target_modules=layers)
    merge_checkpoint(tmp_path / "base", [place], "sum", tmp_path / "out", form=form)
    text = snippet(tmp_path / "out")
    assert f"from transformers import {loaded}\n" in text
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(text, names)
    model = names["model"] if form == "model" else names["model"].get_base_model()
    assert type(model).__name__ == architecture
    if form == "model":  # nothing of it is made up
        again, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not info["missing_keys"]
        state = again.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("form", ["model", "adapter"])
def test_a_head_that_adapters_bring_decides(form, tmp_path, monkeypatch):
    transformers.BertModel(BERT).save_pretrained(tmp_path / "base")
    auto = transformers.AutoModelForSequenceClassification
    place = adapter(
        tmp_path / "base",
        tmp_path / "lora",
        seed=1,
        auto=auto,
        target_modules=["query"],
        task_type="SEQ_CLS",
    )
    merge_checkpoint(tmp_path / "base", [place], "sum", tmp_path / "out", form=form)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(snippet(tmp_path / "out"), names)
    assert type(names["model"]).__name__.endswith("ForSequenceClassification")
    assert "AutoModelForSequenceClassification" in snippet(tmp_path / "out")


def test_the_class_of_each_architecture_that_transformers_knows():
    tables = {
        name: dict(getattr(modeling_auto, f"MODEL_FOR_{part}_MAPPING_NAMES"))
        for name, part in {
            "AutoModelForCausalLM": "CAUSAL_LM",
            "AutoModelForMaskedLM": "MASKED_LM",
            "AutoModelForSeq2SeqLM": "SEQ_TO_SEQ_CAUSAL_LM",
            "AutoModelForSequenceClassification": "SEQUENCE_CLASSIFICATION",
            "AutoModelForTokenClassification": "TOKEN_CLASSIFICATION",
            "AutoModelForQuestionAnswering": "QUESTION_ANSWERING",
            "AutoModelForMultipleChoice": "MULTIPLE_CHOICE",
            "AutoModelForImageClassification": "IMAGE_CLASSIFICATION",
        }.items()
    }
    every = [
        getattr(modeling_auto, name)
        for name in dir(modeling_auto)
        if name.endswith("_MAPPING_NAMES")
    ]
    pairs = {
        (kind, name) for table in every for kind, name in table.items() if isinstance(name, str)
    }
    assert len(pairs) > 500
    for kind, architecture in pairs:
        found = auto_class.of_config({"model_type": kind, "architectures": [architecture]})
        if found in tables:
            assert tables[found][kind] == architecture
        elif found != "AutoModel":
            assert found == architecture


@pytest.mark.parametrize(
    ("config", "loaded"),
    [
        ({}, "AutoModel"),
        ({"architectures": []}, "AutoModel"),
        ({"architectures": ["a b"]}, "AutoModel"),
        ({"architectures": 3, "model_type": []}, "AutoModel"),
        (
            {"architectures": ["HubertForSequenceClassification"], "model_type": "hubert"},
            "HubertForSequenceClassification",
        ),
        ({"architectures": ["T5EncoderModel"], "model_type": "t5"}, "T5EncoderModel"),
    ],
)
def test_odd_configurations(config, loaded):
    assert auto_class.of_config(config) == loaded


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("plain", "`plain`"),
        ("<img src=x onerror=alert(1)>", "`<img src=x onerror=alert(1)>`"),
        ("a`b", "``a`b``"),
        ("`a``", "``` `a`` ```"),
        ("a|b", r"`a\|b`"),
        ("a\n\n# Title", r"`a\n\n# Title`"),
        ("\x1b[31mred", r"`\x1b[31mred`"),
    ],
)
def test_names_are_code(name, shown):
    assert code(name) == shown


def test_names_from_elsewhere_are_text_in_the_card(tmp_path):
    folder = base("llama", tmp_path)
    evil = "[click](javascript:x) <script>alert(1)</script> | `x`\n# Title\n```\n"
    evil = evil.replace("/", "")
    place = adapter(folder, tmp_path / evil, seed=1)
    merged = merge_checkpoint(folder, [place], "sum", tmp_path / f"out {evil}")
    card = (tmp_path / f"out {evil}" / "README.md").read_text()
    body = card.split("---\n", 2)[2]
    outside = re.sub(r"```python\n.*?\n```\n", "", body, flags=re.DOTALL)
    outside = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", outside)
    assert "<" not in outside and "[" not in outside
    assert [line for line in body.splitlines() if line.startswith("#")][1:] == ["## Loading"]
    assert not any(line.startswith("# Title") for line in str(merged).splitlines())
