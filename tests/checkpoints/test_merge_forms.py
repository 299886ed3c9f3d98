"""Forms of adapters and bases that only the model's architecture explains,
merged as stock peft merges them.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from peft_folders import adapter, base, values
from safetensors.torch import load_file, save_file

from perdure import CheckpointError, InputError, PerdureWarning, merge_checkpoint
from perdure.checkpoints import skeleton

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*ensure_weight_tying.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*save_embedding_layers.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*no longer tied.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*Conv1D.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:The following alpha_pattern keys:RuntimeWarning"),
]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
LM = transformers.AutoModelForCausalLM
GPT2: dict[str, Any] = {
    "vocab_size": 50,
    "n_embd": 16,
    "n_layer": 1,
    "n_head": 2,
    "n_positions": 32,
}
GPT2 |= {"bos_token_id": 1, "eos_token_id": 1, "tie_word_embeddings": False}
SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def saved(config, place: Path, kind) -> Path:
    torch.manual_seed(0)
    kind._from_config(config).save_pretrained(place)
    return place


def configure(place: Path, **changes) -> None:
    path = place / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def stock(folder: Path, place: Path, kind, out: Path) -> dict[str, torch.Tensor]:
    peft.PeftModel.from_pretrained(
        kind.from_pretrained(folder), place
    ).merge_and_unload().save_pretrained(out)
    return values(out)


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-6)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.tensor([[5, 6, 7, 8]])).logits


# -- nn.Linear and Conv1D


def gpt2(**more) -> transformers.GPT2Config:
    return transformers.GPT2Config(**GPT2, **more)


def bert_and_gpt2() -> transformers.EncoderDecoderConfig:
    inner = gpt2(add_cross_attention=True, is_decoder=True)
    encoder = transformers.BertConfig(vocab_size=50, **SMALL)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, inner)
    config.tie_word_embeddings = False
    return config


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize(
    ("kind", "make", "layers"),
    [
        (
            transformers.LlamaForCausalLM,
            lambda: transformers.LlamaConfig(vocab_size=64, **SMALL),
            ["q_proj", "down_proj"],
        ),
        (transformers.GPT2LMHeadModel, gpt2, ["c_attn", "c_proj", "lm_head"]),
        (
            transformers.GPT2ForSequenceClassification,
            lambda: gpt2(num_labels=16, pad_token_id=0),
            ["c_proj", "score"],
        ),
        (
            transformers.EncoderDecoderModel,
            bert_and_gpt2,
            ["query", "intermediate.dense", "c_attn", "attn.c_proj"],
        ),
    ],
)
def test_what_the_file_says_of_transposition_does_not_count(kind, make, layers, flag, tmp_path):
    """Square weights above all, whose shape does not show how they are stored;
    here all blocks are 16 wide.
    """
    folder = saved(make(), tmp_path / "base", kind)
    place = adapter(folder, tmp_path / "lora", seed=1, auto=kind, target_modules=layers)
    configure(place, fan_in_fan_out=flag)
    merge_checkpoint(folder, [place], "sum", tmp_path / "out")
    same(values(tmp_path / "out"), stock(folder, place, kind, tmp_path / "stock"))


def test_of_an_unknown_architecture_the_file_is_believed(tmp_path):
    folder = saved(gpt2(), tmp_path / "base", transformers.GPT2LMHeadModel)
    place = adapter(folder, tmp_path / "lora", seed=1, target_modules=["c_attn", "attn.c_proj"])
    expected = stock(folder, place, LM, tmp_path / "stock")
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "unheard-of",
        "architectures": ["No"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    configure(place, fan_in_fan_out=True)
    merge_checkpoint(folder, [place], "sum", tmp_path / "out")
    same(values(tmp_path / "out"), expected)
    configure(place, fan_in_fan_out=False)  # then nothing explains that a weight is turned
    with pytest.raises(CheckpointError, match="belongs to another model"):
        merge_checkpoint(folder, [place], "sum", tmp_path / "none")


def test_a_plain_merge_never_asks_transformers(tmp_path, monkeypatch):
    folder = base("llama", tmp_path)
    places = [adapter(folder, tmp_path / name, seed=1) for name in ("one", "other")]
    monkeypatch.setattr(skeleton, "_build", lambda *given: pytest.fail("transformers was asked"))
    merge_checkpoint(folder, places, "sum", tmp_path / "out")


# -- tied tables


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> Path:
    return base("llama", tmp_path_factory.mktemp("tied"), tie_word_embeddings=True, vocab_size=64)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"modules_to_save": ["lm_head"]}, True),
        ({"modules_to_save": ["embed_tokens"]}, True),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, True),
        ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, False),
        ({"target_modules": ["q_proj", "lm_head"]}, True),
        ({"target_modules": ["q_proj", "embed_tokens"]}, True),
        ({"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}, False),
        ({}, False),
    ],
)
@pytest.mark.parametrize("shards", ["1GB", "3KB"])
def test_tied_tables_part_where_one_of_them_was_trained(settings, parts, shards, tied, tmp_path):
    folder = tmp_path / "llama"
    LM.from_pretrained(tied).save_pretrained(folder, max_shard_size=shards)
    place = adapter(folder, tmp_path / "lora", seed=1, **{"target_modules": ["q_proj"]} | settings)
    expected = logits(peft.PeftModel.from_pretrained(LM.from_pretrained(folder), place))
    merged = merge_checkpoint(folder, [place], "sum", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is not parts
    assert ("lm_head.weight" in values(tmp_path / "out")) is parts
    assert any("tie_word_embeddings" in note for note in merged.notes) is parts
    found = logits(LM.from_pretrained(tmp_path / "out"))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    index = tmp_path / "out" / "model.safetensors.index.json"
    assert not index.exists() or {*json.loads(index.read_text())["weight_map"]} == {
        *values(tmp_path / "out")
    }


def test_tables_stay_tied_beside_an_adapter_that_does_not_touch_them(tied, tmp_path):
    trained = {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}
    first = adapter(tied, tmp_path / "first", seed=1, target_modules=["q_proj"], **trained)
    other = adapter(tied, tmp_path / "other", seed=2, target_modules=["o_proj"])
    merge_checkpoint(tied, [first, other], "sum", tmp_path / "out")
    alone = adapter(tied, tmp_path / "alone", seed=3, target_modules=["q_proj", "lm_head"])
    merge_checkpoint(tied, [alone, other], "sum", tmp_path / "parted")
    assert "lm_head.weight" in values(tmp_path / "parted")
    table = load_file(first / WEIGHTS)["base_model.model.model.embed_tokens.weight"]
    assert "lm_head.weight" not in values(tmp_path / "out")
    assert torch.equal(values(tmp_path / "out")["model.embed_tokens.weight"], table)


def test_tied_tables_of_masked_language_models_have_a_bias(tmp_path):
    kind = transformers.BertForMaskedLM
    folder = saved(transformers.BertConfig(vocab_size=64, **SMALL), tmp_path / "base", kind)
    place = adapter(
        folder, tmp_path / "lora", seed=1, auto=kind, target_modules=["query", "decoder"]
    )
    merge_checkpoint(folder, [place], "sum", tmp_path / "out")
    expected = logits(peft.PeftModel.from_pretrained(kind.from_pretrained(folder), place))
    torch.testing.assert_close(
        logits(kind.from_pretrained(tmp_path / "out")), expected, atol=1e-5, rtol=1e-5
    )


def test_three_tables_that_are_one_cannot_part(tmp_path):
    kind = transformers.T5ForConditionalGeneration
    config = transformers.T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    folder = saved(config, tmp_path / "base", kind)
    place = adapter(folder, tmp_path / "lora", seed=1, auto=kind, target_modules=["q", "lm_head"])
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        merge_checkpoint(folder, [place], "sum", tmp_path / "out")


# -- vocabularies that were resized before training


def grown(
    folder: Path, place: Path, *, rows: int = 70, seed: int = 1, **settings: Any
) -> torch.Tensor:
    """Save an adapter of a model whose tables were resized; the logits of that model."""
    torch.manual_seed(seed)
    model = LM.from_pretrained(folder)
    model.resize_token_embeddings(rows)
    model = peft.get_peft_model(
        model, peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj"]} | settings)
    )
    for name, parameter in model.named_parameters():
        if ".lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, 0, 0.2)
    model.save_pretrained(place)
    return logits(model)


@pytest.mark.parametrize(
    ("tie", "settings"),
    [
        (False, {}),
        (True, {}),
        (False, {"modules_to_save": ["embed_tokens", "lm_head"]}),
        (True, {"modules_to_save": ["embed_tokens", "lm_head"]}),
        (False, {"modules_to_save": ["embed_tokens"]}),
        (True, {"modules_to_save": ["embed_tokens"]}),
        (True, {"target_modules": ["q_proj", "lm_head"]}),
        (True, {"target_modules": ["q_proj", "embed_tokens"]}),
        (True, {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}),
        (False, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
        (False, {"rows": 60}),
    ],
)
def test_a_resized_vocabulary_is_taken(tie, settings, tmp_path):
    folder = base("llama", tmp_path, tie_word_embeddings=tie)
    rows = settings.get("rows", 70)
    expected = grown(folder, tmp_path / "lora", **settings)
    merged = merge_checkpoint(folder, [tmp_path / "lora"], "sum", tmp_path / "out")
    model = LM.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == rows == model.get_input_embeddings().num_embeddings
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    assert any(f"{rows} tokens" in note for note in merged.notes)
    with pytest.raises(InputError, match="--as model"):
        merge_checkpoint(folder, [tmp_path / "lora"], "sum", tmp_path / "adapter", form="adapter")


def test_the_tokenizer_of_a_resized_vocabulary_comes_with_it(tmp_path):
    folder = base("llama", tmp_path)
    grown(folder, tmp_path / "lora")
    for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json"):
        (folder / name).write_text('{"of": "base"}')
    merge_checkpoint(folder, [tmp_path / "lora"], "sum", tmp_path / "first")
    assert json.loads((tmp_path / "first" / "tokenizer.json").read_text()) == {"of": "base"}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "lora" / name).write_text('{"of": "adapter"}')
    merge_checkpoint(folder, [tmp_path / "lora"], "sum", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "tokenizer.json").read_text()) == {"of": "adapter"}
    assert not (tmp_path / "out" / "added_tokens.json").exists()


def test_two_resized_vocabularies_need_a_choice(tmp_path):
    folder = base("llama", tmp_path)
    places = [tmp_path / "a", tmp_path / "b", tmp_path / "plain"]
    for seed, place in enumerate(places[:2]):
        grown(folder, place, rows=70 + seed, seed=seed)
    adapter(folder, places[2], seed=3)
    with pytest.raises(InputError, match="--saved-modules`: a, b, plain, or `none`"):
        merge_checkpoint(folder, places, "sum", tmp_path / "out")
    merge_checkpoint(folder, places, "sum", tmp_path / "out", saved_modules="b")
    assert len(values(tmp_path / "out")["lm_head.weight"]) == 71
    merge_checkpoint(folder, places, "sum", tmp_path / "own", saved_modules="none")
    assert torch.equal(values(tmp_path / "own")["lm_head.weight"], values(folder)["lm_head.weight"])


def test_tables_of_different_sizes_are_refused(tmp_path):
    folder = base("llama", tmp_path)
    grown(folder, tmp_path / "lora")
    tensors = load_file(tmp_path / "lora" / WEIGHTS)
    del tensors["base_model.model.lm_head.weight"]
    save_file(tensors, tmp_path / "lora" / WEIGHTS)
    with pytest.raises(
        CheckpointError,
        match="resized the vocabulary.*`lm_head.weight` 64, `model.embed_tokens.weight` 70",
    ):
        merge_checkpoint(folder, [tmp_path / "lora"], "sum", tmp_path / "out")
    shutil.rmtree(tmp_path / "lora")
    grown(folder, tmp_path / "lora", target_modules=["q_proj", "embed_tokens", "lm_head"])
    with pytest.raises(InputError, match="changes 70 rows of"):
        merge_checkpoint(folder, [tmp_path / "lora"], "sum", tmp_path / "out", saved_modules="none")


# -- experts


MOE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
MOE |= {"num_key_value_heads": 2, "num_experts_per_tok": 1}
MIXTURES = {
    "mixtral": lambda: transformers.MixtralConfig(**MOE, intermediate_size=24, num_local_experts=3),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **MOE, intermediate_size=24, moe_intermediate_size=12, num_experts=3, head_dim=8
    ),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **MOE,
        intermediate_size=24,
        num_local_experts=3,
        head_dim=8,
        pad_token_id=0,
        layer_types=["full_attention"] * 2,
    ),
}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj"], "target_parameters": EXPERTS},
        {"target_modules": [], "target_parameters": ["experts.down_proj"], "use_rslora": True},
        {"target_modules": "all-linear"},
        {
            "target_modules": ["v_proj"],
            "target_parameters": EXPERTS,
            "rank_pattern": {"experts.gate_up_proj": 3},
            "alpha_pattern": {"layers.1.mlp.experts.down_proj": 5},
        },
    ],
)
def test_experts_as_peft_merges_them(kind, settings, tmp_path):
    torch.manual_seed(0)
    LM.from_config(MIXTURES[kind]()).save_pretrained(tmp_path / "base")
    place = adapter(
        tmp_path / "base", tmp_path / "lora", seed=1, **{"r": 2, "lora_alpha": 6} | settings
    )
    merged = merge_checkpoint(tmp_path / "base", [place], "sum", tmp_path / "out")
    found, expected = (
        values(tmp_path / "out"),
        stock(tmp_path / "base", place, LM, tmp_path / "stock"),
    )
    before = values(tmp_path / "base")
    assert any(
        not torch.equal(found[name], before[name])
        for name in found
        if "experts" in name or "all" in str(settings)
    )
    same(found, expected)
    assert merged.layers
    if "target_parameters" in settings:
        with pytest.raises(InputError, match="--as model"):
            merge_checkpoint(
                tmp_path / "base", [place], "sum", tmp_path / "adapter", form="adapter"
            )


def test_experts_of_two_adapters_add_up(tmp_path):
    torch.manual_seed(0)
    LM.from_config(MIXTURES["gpt_oss"]()).save_pretrained(tmp_path / "base")
    settings: dict[str, Any] = {"target_modules": [], "target_parameters": ["experts.down_proj"]}
    places = [
        adapter(tmp_path / "base", tmp_path / name, seed=i, **settings)
        for i, name in enumerate("ab")
    ]
    before = values(tmp_path / "base")
    merge_checkpoint(tmp_path / "base", places, "sum", tmp_path / "out")
    found = values(tmp_path / "out")
    name = "model.layers.1.mlp.experts.down_proj"
    parts = [
        stock(tmp_path / "base", place, LM, tmp_path / f"{place.name}-stock")[name]
        for place in places
    ]
    torch.testing.assert_close(found[name], sum(parts) - before[name], atol=1e-5, rtol=1e-5)


def test_experts_that_are_missing_or_too_many(tmp_path):
    torch.manual_seed(0)
    LM.from_config(MIXTURES["mixtral"]()).save_pretrained(tmp_path / "base")
    place = adapter(
        tmp_path / "base",
        tmp_path / "lora",
        seed=1,
        target_modules=["q_proj"],
        target_parameters=EXPERTS,
    )
    tensors = load_file(place / WEIGHTS)
    save_file(
        {key: value for key, value in tensors.items() if ".layers.1." not in key}, place / WEIGHTS
    )
    with pytest.warns(
        PerdureWarning, match=r"lacks 3 of the 6 layers .*`model.layers.1.mlp.experts.gate_up_proj`"
    ):
        merge_checkpoint(tmp_path / "base", [place], "sum", tmp_path / "out")
    save_file(tensors, place / WEIGHTS)
    configure(place, target_parameters=EXPERTS[:1])
    with pytest.raises(
        CheckpointError, match="factors for 2 parameters of `model.layers.0.mlp.experts`"
    ):
        merge_checkpoint(tmp_path / "base", [place], "sum", tmp_path / "none")
    configure(place, target_parameters=EXPERTS, r=5)
    with pytest.raises(CheckpointError, match="do not match"):
        merge_checkpoint(tmp_path / "base", [place], "sum", tmp_path / "none")


# -- layers that the file lacks, or has beyond the configuration


def keep(place: Path, which) -> None:
    tensors = load_file(place / WEIGHTS)
    save_file({key: value for key, value in tensors.items() if which(key)}, place / WEIGHTS)


@pytest.mark.parametrize(
    ("settings", "missing"),
    [
        ({"target_modules": ["q_proj", "o_proj"]}, 3),
        ({"target_modules": r".*\.(q|o)_proj"}, 3),
        ({"target_modules": ["q_proj", "o_proj"], "layers_to_transform": [0]}, 1),
        (
            {
                "target_modules": ["q_proj", "o_proj"],
                "layers_to_transform": 0,
                "layers_pattern": "layers",
            },
            1,
        ),
        ({"target_modules": ["q_proj", "o_proj"], "exclude_modules": ["o_proj"]}, 1),
        ({"target_modules": r".*_proj", "exclude_modules": r".*\.(k|v|gate|up|down|o)_proj"}, 1),
        ({"target_modules": ["layers.0.self_attn.q_proj"]}, 0),
    ],
)
def test_layers_that_the_file_lacks_are_named(settings, missing, tmp_path):
    folder = base("llama", tmp_path)
    place = adapter(folder, tmp_path / "lora", seed=1, **settings)
    keep(place, lambda key: "layers.0.self_attn.q_proj" in key)
    if not missing:
        assert merge_checkpoint(folder, [place], "sum", tmp_path / "out").notes == ()
        return
    with pytest.warns(
        PerdureWarning, match=f"`lora` lacks {missing} of the {missing + 1} layers"
    ) as said:
        merged = merge_checkpoint(folder, [place], "sum", tmp_path / "out")
    assert "layers.1" in str(said[0].message) or "o_proj" in str(said[0].message)
    assert merged.layers == 1
    assert f"lacks {missing} of the" in (tmp_path / "out" / "README.md").read_text()


def test_what_the_model_of_the_adapter_has_not_is_not_missing(tmp_path):
    """`dense` of the output layer and of the pooler, in a base that was made for another task."""
    kind = transformers.BertForPreTraining
    folder = saved(transformers.BertConfig(vocab_size=64, **SMALL), tmp_path / "base", kind)
    auto = transformers.AutoModelForTokenClassification
    place = adapter(
        folder,
        tmp_path / "lora",
        seed=1,
        auto=auto,
        target_modules=["dense"],
        task_type="TOKEN_CLS",
    )
    assert not any("pooler" in key or "cls" in key for key in load_file(place / WEIGHTS))
    assert merge_checkpoint(folder, [place], "sum", tmp_path / "out").notes == ()
    keep(place, lambda key: "attention" in key)
    with pytest.warns(PerdureWarning, match="lacks 2 of the 3 layers"):
        merge_checkpoint(folder, [place], "sum", tmp_path / "less")


def test_an_output_layer_that_the_file_lacks(tmp_path):
    folder = base("llama", tmp_path)
    place = adapter(folder, tmp_path / "lora", seed=1, target_modules=["q_proj", "lm_head"])
    keep(place, lambda key: "lm_head" not in key)
    with pytest.warns(PerdureWarning, match="lacks 1 of the 3 layers .*: `lm_head`"):
        merge_checkpoint(folder, [place], "sum", tmp_path / "out")


def test_layers_that_are_not_targeted_are_left_out_as_peft_leaves_them_out(tmp_path):
    folder = base("llama", tmp_path)
    place = adapter(folder, tmp_path / "lora", seed=1, target_modules=["q_proj", "o_proj"])
    configure(place, target_modules=["q_proj"])
    with pytest.warns(PerdureWarning, match="does not target: `model.layers.0.self_attn.o_proj`"):
        merge_checkpoint(folder, [place], "sum", tmp_path / "out")
    same(values(tmp_path / "out"), stock(folder, place, LM, tmp_path / "stock"))
    configure(place, target_modules=["v_proj"])
    with pytest.raises(CheckpointError, match="that `target_modules` in"):
        merge_checkpoint(folder, [place], "sum", tmp_path / "none")
    configure(
        place, target_modules=None
    )  # as early versions wrote it: the type of the model decides
    assert merge_checkpoint(folder, [place], "sum", dry_run=True).layers == 4
