"""Adapter folders: what is refused, and with which words; damage names the file and the tensor."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from peft_folders import adapter, base, values
from safetensors.torch import load_file, save_file

from perdure import CheckpointError, InputError, PerdureError, PerdureWarning, merge_checkpoint
from perdure.checkpoints import peft_folder
from perdure.models import patterns
from perdure.storage.tensors import header, new

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("made")
    folder = base("llama", place)
    return folder, adapter(folder, place / "one", seed=1)


@pytest.fixture
def copy(made, tmp_path):
    """The base, and a copy of the adapter to be changed."""
    return made[0], Path(shutil.copytree(made[1], tmp_path / "copy"))


def configure(place: Path, **changes) -> None:
    config = json.loads((place / CONFIG).read_text()) | changes
    (place / CONFIG).write_text(json.dumps(config))


def weigh(place: Path, change) -> None:
    tensors = load_file(place / WEIGHTS)
    change(tensors)
    save_file(tensors, place / WEIGHTS)


def fails(folder, place, message: str, **more) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        merge_checkpoint(folder, [place], "sum", place.parent / "out", **more)
    assert str(place) in str(error.value)
    assert [path.name for path in place.parent.iterdir()] == [place.name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "`peft_type` is 'IA3'"),
        ({"peft_type": None}, "`peft_type` is None"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "`bias` is 'all'"),
        ({"lora_bias": True}, "`lora_bias`"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changed the base"),
        ({"init_lora_weights": "olora"}, "Convert the adapter"),
        ({"init_lora_weights": "loftq"}, "Convert the adapter"),
        ({"init_lora_weights": "corda"}, "Convert the adapter"),
        ({"init_lora_weights": "lora_ga"}, "Convert the adapter"),
        ({"init_lora_weights": ["x"]}, "Convert the adapter"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "copies layers"),
        ({"trainable_token_indices": [1]}, "individual rows"),
        ({"target_parameters": "experts.up"}, "`target_parameters` is"),
        ({"target_modules": [3]}, "`target_modules` is"),
        ({"exclude_modules": {"a": 1}}, "`exclude_modules` is"),
        ({"layers_to_transform": "0"}, "`layers_to_transform` is"),
        ({"target_modules": r".*(q|v_proj"}, "`target_modules`: .* is not a regular expression"),
        ({"alora_invocation_tokens": [3]}, "acts only on some tokens"),
        ({"use_qalora": True}, "QALoRA"),
        ({"rank_pattern": {"(": 3}}, "is not a regular expression"),
        ({"rank_pattern": [3]}, "`rank_pattern` is"),
        ({"r": 3}, "rank 3"),
        ({"r": 0}, "`r` of"),
        ({"r": True}, "`r` of"),
        ({"lora_alpha": "8"}, "`lora_alpha` of"),
        ({"lora_alpha": float("nan")}, "`lora_alpha` of"),
        ({"modules_to_save": "head"}, "`modules_to_save` is"),
        ({"base_model_name_or_path": "org/other-model"}, "--any-base"),
    ],
)
def test_refused_settings(changes, message, copy):
    configure(copy[1], **changes)
    fails(*copy, message)


def test_gaussian_and_converted_starts_are_taken(copy):
    configure(copy[1], init_lora_weights="gaussian", base_model_name_or_path="")
    assert merge_checkpoint(copy[0], [copy[1]], "sum", dry_run=True).layers == 4
    configure(copy[1], base_model_name_or_path="org/other-model")
    assert merge_checkpoint(copy[0], [copy[1]], "sum", dry_run=True, any_base=True).layers == 4
    configure(copy[1], base_model_name_or_path="org/llama", something_new=True)
    with pytest.warns(PerdureWarning, match="`something_new` is an unknown setting"):
        merge_checkpoint(copy[0], [copy[1]], "sum", dry_run=True)


def put(name: str, value):
    def change(tensors):
        tensors[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{Q}B.weight"), "q_proj` has the factors"),
        (
            put(f"{Q}A.weight", torch.full((4, 16), float("nan"))),
            "q_proj.lora_A.weight` in .* not finite",
        ),
        (
            put(f"{Q}B.weight", torch.full((16, 4), float("inf"))),
            "q_proj.lora_B.weight` in .* not finite",
        ),
        (
            put(f"{Q}B.weight", torch.full((16, 4), 3e38)),
            "q_proj.lora_B.weight` in .* scaled with alpha .* is not finite",
        ),
        (put(f"{Q}B.weight", torch.full((16, 4), 1e300, dtype=torch.float64)), "not finite"),
        (put(f"{Q}A.weight", torch.ones(4, 16, dtype=torch.int8)), "has the type I8"),
        (put(f"{Q}A.weight", torch.ones(4, 17)), r"by a matrix of shape \(16, 17\)"),
        (put(f"{Q}A.weight", torch.ones(3, 16)), "do not match"),
        (put(f"{Q}A.weight", torch.ones(4)), "do not match"),
        (put(f"{Q}A.other.weight", torch.ones(4, 16)), "has two adapters"),
        (put(f"{Q}magnitude_vector", torch.ones(16)), "is not a LoRA factor"),
        (put(f"{Q}B.bias", torch.ones(16)), "is not a LoRA factor"),
        (put(f"{Q[:-6]}.lora_magnitude_vector.weight", torch.ones(16)), "is not a LoRA factor"),
        (
            put("base_model.model.model.embed_tokens.weight", torch.ones(65, 16)),
            "different numbers of rows",
        ),
        (
            put("base_model.model.model.embed_tokens.weight", torch.ones(64, 17)),
            "`modules_to_save`",
        ),
        (
            put("base_model.model.model.embed_tokens.weight", torch.ones(64, 16)),
            "has a full tensor `model.embed_tokens.weight`",
        ),
        (
            put("base_model.model.unknown.weight", torch.ones(2)),
            "has a full tensor `unknown.weight`",
        ),
        (
            put("base_model.model.o_proj.lora_A.weight", torch.ones(4, 16)),
            "`o_proj` has the factors",
        ),
        (lambda t: [t.pop(name) for name in list(t)], "is not a LoRA"),
    ],
)
def test_refused_tensors(change, message, copy):
    weigh(copy[1], change)
    fails(*copy, message)


def test_a_layer_that_the_base_has_not(copy):
    def rename(tensors):
        for part in "AB":
            tensors[f"base_model.model.model.layers.7.self_attn.q_proj.lora_{part}.weight"] = (
                tensors.pop(f"{Q}{part}.weight")
            )

    weigh(copy[1], rename)
    fails(*copy, r"layers.7.self_attn.q_proj`, but .* \(closest: `model.layers.\d")


def test_the_old_spelling_with_the_name_of_the_adapter(copy, tmp_path):
    merge_checkpoint(*copy[:1], [copy[1]], "sum", tmp_path / "new")

    def rename(tensors):
        for name in list(tensors):
            tensors[
                name.replace(".weight", ".default.weight").removeprefix("base_model.model.")
            ] = tensors.pop(name)

    weigh(copy[1], rename)
    merge_checkpoint(copy[0], [copy[1]], "sum", tmp_path / "old")
    before, after = values(tmp_path / "new"), values(tmp_path / "old")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_factors_are_multiplied_in_single_precision(dtype, copy):
    weigh(copy[1], lambda t: t.update({name: value.to(dtype) for name, value in t.items()}))
    parts = load_file(copy[1] / WEIGHTS)
    change = peft_folder.read(copy[1]).factors["model.layers.0.self_attn.q_proj"].change
    assert change.B.dtype == torch.float32
    expected = 2.0 * parts[f"{Q}B.weight"].float() @ parts[f"{Q}A.weight"].float()
    torch.testing.assert_close(change.dense(), expected)


def test_pickles_and_missing_files(copy):
    folder, place = copy
    (place / WEIGHTS).rename(place / "adapter_model.bin")
    fails(folder, place, "unpickling can run arbitrary code")
    (place / "adapter_model.bin").unlink()
    fails(folder, place, f"{WEIGHTS}` is missing")
    (place / CONFIG).write_text("[" * 100_000)
    fails(folder, place, f"{CONFIG}` is not JSON")
    (place / CONFIG).write_text("[1]")
    fails(folder, place, "not a JSON object")
    (place / CONFIG).unlink()
    fails(folder, place, f"{CONFIG}` is missing")
    with pytest.raises(InputError, match="There is no folder .* of a model or an adapter"):
        merge_checkpoint(folder, [place / "nowhere"], "sum", dry_run=True)
    with pytest.raises(InputError, match="Nothing to merge"):
        merge_checkpoint(folder, [], "sum", dry_run=True)


def test_saved_modules(made, tmp_path):
    folder, _ = made
    settings = {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    first, other = (
        adapter(folder, tmp_path / n, seed=i, **settings) for i, n in enumerate(("first", "other"))
    )
    head = {
        place: load_file(place / WEIGHTS)["base_model.model.lm_head.weight"]
        for place in (first, other)
    }
    with pytest.raises(InputError, match="--saved-modules`: first, other, or `none`"):
        merge_checkpoint(folder, [first, other], "sum", tmp_path / "out")
    for choice, expected in (("other", head[other]), ("none", values(folder)["lm_head.weight"])):
        merge_checkpoint(
            folder, [first, other], "sum", tmp_path / f"{choice}-out", saved_modules=choice
        )
        assert torch.equal(values(tmp_path / f"{choice}-out")["lm_head.weight"], expected)
    plain = adapter(folder, tmp_path / "plain", seed=3)
    merged = merge_checkpoint(folder, [first, plain], "sum", tmp_path / "one")  # in one only
    assert torch.equal(
        values(tmp_path / "one")["lm_head.weight"], head[first]
    ) and merged.saved == ("lm_head.weight",)
    weigh(other, put("base_model.model.lm_head.weight", head[first]))
    merge_checkpoint(folder, [first, other], "sum", tmp_path / "equal")
    assert torch.equal(values(tmp_path / "equal")["lm_head.weight"], head[first])
    merge_checkpoint(folder, [first, other], "sum", tmp_path / "lora", form="adapter")
    assert torch.equal(
        load_file(tmp_path / "lora" / WEIGHTS)["base_model.model.lm_head.weight"], head[first]
    )


def test_names_of_adapters(made, tmp_path):
    folder, one = made
    places = [
        shutil.copytree(one, tmp_path / part / "adapter")
        for part in ("x/00-mail", "y/00-mail", "y/01-news")
    ]
    places.append(shutil.copytree(one, tmp_path / "mine"))
    merged = merge_checkpoint(folder, places, "sum", dry_run=True)
    names = [part.name for part in merged.adapters]
    assert (
        len(set(names)) == 4
        and names[2:] == ["news", "mine"]
        and all("mail" in name for name in names[:2])
    )
    with pytest.raises(InputError, match="given twice"):
        merge_checkpoint(folder, [one, one], "sum", dry_run=True)


SLOW = r"(?:(?:\w\w?\.?){1,90}){1,90}\s"


@pytest.mark.parametrize(
    "setting",
    [
        {"target_modules": SLOW},
        {"exclude_modules": SLOW},
        {"layers_pattern": SLOW, "layers_to_transform": [0]},
        {"rank_pattern": {SLOW: 3}},
        {"alpha_pattern": {SLOW: 3}},
        {"modules_to_save": [SLOW]},
    ],
)
def test_a_pattern_that_would_be_matched_for_ever(setting, copy, monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    configure(copy[1], **setting)
    began = time.monotonic()
    fails(
        *copy,
        rf"`{next(iter(setting))}`: matching the regular expression .* takes more than 0.2 seconds",
    )
    assert time.monotonic() - began < 3


def test_an_adapter_in_a_folder_below(copy, tmp_path):
    folder, place = copy
    below = tmp_path / "french"
    place.rename(below)
    with pytest.raises(
        CheckpointError, match=rf"`{CONFIG}`, but there are adapters .*: give `{below}`"
    ):
        merge_checkpoint(folder, [tmp_path], "sum", dry_run=True)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_pointer_of_git_lfs(name, copy):
    (copy[1] / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"
    )
    fails(*copy, rf"{name}` is a Git LFS pointer, .*`git lfs pull`")


def test_a_vast_factor_is_compared_with_the_base_before_it_is_read(copy):
    """A sparse file of 400 GB, whose header is all there is of it."""
    tensors = {
        f"{Q}A.weight": new(torch.empty(4, 10**11, device="meta")),
        f"{Q}B.weight": new(torch.ones(16, 4)),
    }
    start, places = header(tensors, {})
    with (copy[1] / WEIGHTS).open("wb") as file:
        file.write(start)
        file.truncate(max(place.stop for place in places.values()))
    fails(*copy, r"by a matrix of shape \(16, 100000000000\)")


def test_quantized_and_infinite_bases(made, tmp_path):
    folder, one = made
    for name, value, message in (
        ("int", torch.ones(16, 16, dtype=torch.int8), "the base is quantized"),
        ("inf", torch.full((16, 16), float("inf")), "values of the base model are not"),
        ("great", torch.full((16, 16), 65504.0, dtype=torch.float16), "the change is too large"),
    ):
        place = Path(shutil.copytree(folder, tmp_path / name / "llama"))
        tensors = values(place) | {"model.layers.0.self_attn.q_proj.weight": value}
        save_file(tensors, place / "model.safetensors")
        big = Path(shutil.copytree(one, tmp_path / name / "big"))
        configure(big, lora_alpha=1e6)
        with pytest.raises(PerdureError, match=message) as error:
            merge_checkpoint(place, [big], "sum", tmp_path / name / "out")
        assert "layers.0.self_attn.q_proj.weight" in str(error.value)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["big", "llama"]
