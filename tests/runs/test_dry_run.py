"""A run that is only counted: of models that are not here, and as the run itself would count."""

import csv
import json
import math
import resource
import socket
from pathlib import Path
from typing import Any

import datasets.config
import huggingface_hub.constants
import pico_language
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_runs
import torch
import transformers
import yaml

from perdure import InputError, Recipe, RunError, registry
from perdure.benchmarks.standard_cl import CARDS
from perdure.benchmarks.super_ni import TASKS
from perdure.errors import BackboneError, PerdureError
from perdure.models import outline, pretrained, quantised
from perdure.models.model_files import ModelFiles
from perdure.storage.tensors import TensorFile

RECIPES = Path(__file__).parents[2] / "recipes" / "language"
T5_LARGE: dict[str, Any] = {
    "d_model": 1024,
    "d_kv": 64,
    "num_layers": 24,
    "num_heads": 16,
    "vocab_size": 32128,
    "decoder_start_token_id": 0,
}
SMALL: dict[str, Any] = {"d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6}
LLAMA_2: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
LLAMA_32: dict[str, Any] = {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
}
QWEN: dict[str, Any] = {
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
SMOLLM: dict[str, Any] = {
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
# The true sizes of each recipe's model, and its number of parameters.
T5 = transformers.T5Config
LLAMA = transformers.LlamaConfig
GATED = {"feed_forward_proj": "gated-gelu", "d_ff": 2816, "tie_word_embeddings": False}
MODELS: dict[str, tuple[Any, dict[str, Any], int]] = {
    "google-t5/t5-large": (T5, {**T5_LARGE, "d_ff": 4096}, 737_668_096),
    "google/flan-t5-large": (T5, {**T5_LARGE, **GATED}, 783_150_080),
    "meta-llama/Llama-2-7b-hf": (LLAMA, LLAMA_2, 6_738_415_616),
    "meta-llama/Llama-3.2-1B": (LLAMA, LLAMA_32, 1_235_814_400),
    "Qwen/Qwen2.5-0.5B": (transformers.Qwen2Config, QWEN, 494_032_768),
    "smollm2": (LLAMA, SMOLLM, 134_515_008),
    "flan_t5": (T5, {**T5_LARGE, **GATED, **SMALL}, 76_961_152),
}
# The values of LoRA on query and value: layers × rank × (in + out), and those that are trained.
LORA = {
    "t5_large_order1": (72 * 2 * 8 * (1024 + 1024), 1.0),
    "t5_large_long": (72 * 2 * 8 * (1024 + 1024), 1.0),
    "flan_t5_large_super_ni": (72 * 2 * 4 * (1024 + 1024), 0.5),  # InfLoRA trains B alone
    "llama2_7b_order1": (32 * 2 * 8 * (4096 + 4096), 1.0),
    "llama2_7b_super_ni": (32 * 2 * 4 * (4096 + 4096), 0.5),
    "llama32_1b_super_ni": (16 * 4 * (2 * 2048 + 2048 + 512), 1.0),
    "qwen25_05b_order1": (24 * 8 * (2 * 896 + 896 + 128), 1.0),
    "standard_order1": (30 * 8 * (2 * 576 + 576 + 192), 1.0),
    "long_order4": (30 * 8 * (2 * 576 + 576 + 192), 1.0),
    "flan_t5_order1": (24 * 2 * 8 * (512 + 384), 1.0),
}
ARCHITECTURES = {
    "t5": "T5ForConditionalGeneration",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}
# Steps of the whole stream where the data are not here: from the sizes that the recipe states.
STATED = {
    "t5_large_order1": 4 * math.ceil(5000 / 64),
    "t5_large_long": 15 * math.ceil(2000 / 64),
    "flan_t5_large_super_ni": 15 * 100 * math.ceil(1000 / 32),
    "llama2_7b_order1": 4 * 5000 // 8,
    "llama2_7b_super_ni": 15 * 50 * math.ceil(1000 / 32),
    "llama32_1b_super_ni": 15 * 50 * math.ceil(1000 / 32),
    "qwen25_05b_order1": 4 * math.ceil(5000 / 64),
}
LONG = {
    "long_order4": "[mnli, copa, yelp]",
    "t5_large_long": "[mnli, copa, yelp]",
    "flan_t5_large_super_ni": "[samsum, sst2, xsum]",
    "llama2_7b_super_ni": "[samsum, sst2, xsum]",
    "llama32_1b_super_ni": "[samsum, sst2, xsum]",
}
PAPER = sorted(path.stem for path in RECIPES.glob("*.yaml"))


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """Folders of models that are a configuration alone, and of both benchmarks' data."""
    folder = tmp_path_factory.mktemp("places")
    for number, (make, sizes, _) in enumerate(MODELS.values()):
        config = make(**sizes, architectures=[ARCHITECTURES[make.model_type]])
        config.save_pretrained(folder / f"model{number}")
        # as the published file of Flan-T5 has it; transformers would write what it makes of it
        path = folder / f"model{number}" / "config.json"
        said = {"tie_word_embeddings": sizes.get("tie_word_embeddings", True)}
        if make.model_type == "t5":
            path.write_text(json.dumps(json.loads(path.read_text()) | said))
    write_standard_cl(folder / "standard_cl")
    write_super_ni(folder / "super_ni")
    return folder


def model(places: Path, name: str) -> Path:
    return places / f"model{list(MODELS).index(name)}"


def write_standard_cl(folder: Path) -> None:
    folder.mkdir()
    labels = {}
    for name, card in CARDS.items():
        classes = card.classes.split("|")
        labels[name] = {"labels": classes}
        rows = [
            {"text": f"text {number}", "label": number % len(classes), "split": split}
            for split, count in (("train", 70), ("test", 28))
            for number in range(count)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")
    (folder / "manifest.json").write_text(json.dumps(labels))


def write_super_ni(folder: Path) -> None:
    folder.mkdir()
    definitions = {}
    for task in TASKS.values():
        definitions[task] = {"definition": ["Say it again."]}
        rows = [
            {"input": f"text {number}", "output": [f"text {number}"], "split": split}
            for split, count in (("train", 40), ("test", 10))
            for number in range(count)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{task}.parquet")
    (folder / "manifest.json").write_text(json.dumps(definitions))


@pytest.fixture
def unreachable(monkeypatch, tmp_path) -> list[object]:
    """No network, with an empty cache, although nothing says so; the list of attempts to use it."""
    attempts: list[object] = []

    def refuse(self: socket.socket, address: object) -> None:
        attempts.append(address)
        raise OSError("the network is not there")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setenv("PERDURE_CACHE", str(tmp_path / "packages"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return attempts


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# -- models that are not here


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_is_counted_on_a_configuration_alone(
    name, places, unreachable, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.read(RECIPES / f"{name}.yaml")
    source = recipe.backbone["model"]
    folder = model(places, source)
    data = places / recipe.stream["name"]
    settings = [f"backbone.model={folder}", f"stream.folder={data}"]
    # Three of fifteen tasks are enough; the next test counts all of them.
    if name in LONG:
        settings.append(f"stream.order={LONG[name]}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    counted = Recipe.read(RECIPES / f"{name}.yaml", settings).dry_run()

    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 1.5e6, "kilobytes"
    assert contents(tmp_path) == [] and unreachable == []
    parameters = MODELS[source][2]
    assert counted.model.parameters == parameters
    width = 2 if recipe.backbone.get("dtype") == "bfloat16" else 4
    assert counted.model.bytes == width * parameters
    assert not counted.model.has_weights and not counted.model.is_tokenized
    training = recipe.make_training()
    values, share = LORA[name]
    for task in counted.tasks:
        assert task.trained == share * values
        assert task.adapter_bytes == 4 * values  # in single precision
        assert task.gradient_bytes == 4 * task.trained
        # AdamW: two moments of each value, and the number of steps of each parameter
        parameters_of_task = task.layers * (2 if share == 1 else 1)
        assert task.optimizer_bytes == 8 * task.trained + 4 * parameters_of_task
        assert task.train and task.test
        batches = math.ceil(task.train / training.batch_size)
        assert task.batches == batches
        assert task.steps == training.epochs * math.ceil(batches / training.gradient_accumulation)
    text = str(counted)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert f"{parameters:,} parameters" in text and text.endswith("Nothing was written.")
    assert "has no tokenizer on this machine" in text and "downloaded" not in text
    assert not counted.at_most and "at most" not in text


@pytest.mark.parametrize("name", STATED)
def test_data_that_are_not_here_are_counted_as_the_recipe_states(name, unreachable, tmp_path):
    # The model makes no difference, so it is a small one of the same kind.
    kind = "t5" if "t5" in name else "llama"
    make, sizes = pico_language.CONFIGS[kind]
    make(**sizes, architectures=[ARCHITECTURES[kind]]).save_pretrained(tmp_path / kind)
    settings = [f"backbone.model={tmp_path / kind}", "backbone.max_length=64"]
    settings.append("backbone.max_new_tokens=16")
    counted = Recipe.read(RECIPES / f"{name}.yaml", settings).dry_run()
    assert counted.steps == STATED[name] and counted.at_most and unreachable == []
    # Some data sets are smaller than asked: CB has 250 rows, and samsum 160.
    text = " ".join(str(counted).split())
    assert f"at most {counted.steps:,} steps in total" in text and "is not on this machine" in text
    assert f"on at most {counted.answers:,} test examples" in text
    assert "all numbers of examples and steps are at most these" in text


def test_recipes_of_pic_combine_as_pic():
    """On this benchmark, `tsv` is behind the average, though it is ahead in the demo."""
    rules = []
    for path in RECIPES.glob("*.yaml"):
        recipe = yaml.safe_load(path.read_text())
        if recipe["name"].startswith("PIC"):
            rules.append(recipe["rule"]["name"])
    assert rules == ["task_arithmetic"] * 2


def test_a_size_that_nothing_states_is_unknown(places, unreachable):
    settings = [f"backbone.model={model(places, 'smollm2')}", "stream.train=null"]
    counted = Recipe.read(RECIPES / "standard_order1.yaml", settings).dry_run()
    assert counted.steps is None and {task.steps for task in counted.tasks} == {None}
    assert "– steps in total" in " ".join(str(counted).split()) and unreachable == []


def test_a_model_that_is_not_here(places, unreachable):
    recipe = Recipe.read(RECIPES / "t5_large_order1.yaml")
    with pytest.raises(BackboneError, match="`google-t5.t5-large` is not on this machine.* Put"):
        recipe.dry_run()
    assert unreachable == []
    with pytest.raises(BackboneError, match="there is no folder `not/a/folder`"):
        Recipe.read(RECIPES / "t5_large_order1.yaml", ["backbone.model=not/a/folder"]).dry_run()


@pytest.mark.parametrize("setting", ["without: [other]", "answer: right"])
def test_other_data_that_are_not_here(setting, places, unreachable):
    """Of a data set on the hub only the name is known; a benchmark may have any number of tasks."""
    text = f"""
    stream:
    - {{data: somebody/questions, {setting}}}
    - {{benchmark: split_mnist}}
    backbone: {{model: {model(places, "Qwen/Qwen2.5-0.5B")}}}
    method: sequential
    """
    counted = Recipe.parse(yaml.safe_load(text)).dry_run()
    assert [task.name for task in counted.tasks] == ["questions", "split_mnist"]
    assert counted.steps is None and counted.answers is None
    assert (
        "`split_mnist` may be several tasks" in " ".join(str(counted).split()) and unreachable == []
    )


def test_an_encoder_without_weights(places, pico, tmp_path):
    """It needs its tokenizer; its heads are counted, by the classes of the data."""
    folder = tmp_path / "bert"
    folder.mkdir()
    for path in pico("bert").iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    values = small_runs.recipe(tmp_path, ("fruit", "colour"), folder)
    here = small_runs.recipe(tmp_path, ("fruit", "colour"), pico("bert"))
    counted, expected = Recipe.parse(values).dry_run(), Recipe.parse(here).dry_run()
    assert counted.tasks == expected.tasks
    assert counted.model.parameters == expected.model.parameters
    heads = [task.head_bytes for task in counted.tasks]
    assert heads == [4 * (32 * 2 + 2), 4 * (32 * 3 + 3)]


# -- as the run counts


def language_recipe(folder: Path, kind: str, **settings: Any) -> dict[str, Any]:
    """A recipe of two tasks on a pico language model: a closed one, and one of free text."""
    if not (folder / kind).exists():
        pico_language.save(folder / kind, kind)
    rows = [f"{('awful', 'great')[i % 2]} {i},{('bad', 'good')[i % 2]}" for i in range(30)]
    (folder / "mood.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    lines = [json.dumps({"prompt": f"Greet {i}", "completion": f"Hi {i}"}) for i in range(23)]
    (folder / "hello.jsonl").write_text("\n".join(lines) + "\n")
    stream = [
        {"data": str(folder / "mood.csv")},
        {"data": str(folder / "hello.jsonl"), "score": "exact_match"},
    ]
    return {
        "stream": stream,
        "backbone": {"model": str(folder / kind), "max_new_tokens": 16, "max_length": 64},
        "method": {"name": "isolated", "rank": 2},
        "training": {"epochs": 2, "batch_size": 4},
    } | settings


def compare(recipe: Recipe, folder: Path) -> None:
    """Count a recipe, run it, and compare with what the run has logged and measured."""
    before = contents(folder)
    counted = recipe.dry_run(folder / "run")
    assert contents(folder) == before
    recipe.run(folder / "run")
    lines = (folder / "run" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    for number, task in enumerate(counted.tasks):
        steps = [e for e in events if e["event"] == "step" and e["task"] == task.name]
        (learned,) = [e for e in events if e["event"] == "task" and e["task"] == task.name]
        assert task.steps == len(steps)
        assert task.trained == learned["trained"]
        assert task.train == learned["examples"]
        adapter = folder / "run" / "tasks" / f"{number:02}-{task.name}" / "adapter"
        size = 0
        if adapter.is_dir():
            tensors = TensorFile(adapter / "adapter_model.safetensors").tensors
            size = sum(4 * math.prod(tensor.shape) for tensor in tensors.values())
        assert task.adapter_bytes == size
    with (folder / "run" / "scores.csv").open() as file:
        rows = {(row["step"], row["task"]) for row in csv.DictReader(file)}
    assert counted.scores == len(rows)
    assert counted.measured == len({step for step, _ in rows})
    again = recipe.dry_run(folder / "run")
    assert (again.tasks, again.measured, again.learned) == ((), 0, len(counted.tasks))


@pytest.mark.parametrize(
    "kind, settings",
    [
        ("llama", {"training": {"epochs": 2, "batch_size": 4, "packing": True}}),
        ("llama", {"training": {"epochs": 3, "batch_size": 5, "gradient_accumulation": 3}}),
        ("llama", {"training": {"batch_size": 8, "gradient_checkpointing": True}}),
        ("t5", {"method": {"name": "joint", "rank": 3}, "evaluation": {"steps": "last"}}),
        ("t5", {"method": {"name": "inflora", "rank": 2}}),
        ("gpt2", {"method": {"name": "sequential", "peft": "full"}}),
        ("llama", {"method": {"name": "replay", "method": "sequential", "per_class": 3}}),
        ("llama", {"method": "isolated", "evaluation": {"future": True}}),
    ],
)
def test_a_language_model_is_counted_as_its_run_counts(kind, settings, tmp_path):
    compare(Recipe.parse(language_recipe(tmp_path, kind, **settings)), tmp_path)


@pytest.mark.parametrize("name", registry.names("method"))
def test_every_method_is_counted_as_its_run_counts(name, pico, tmp_path):
    method: Any = {"name": name}
    found = registry.find("method", name)
    usual = {"rank": 2, "features": 50, "per_class": 3}
    method |= {key: usual[key] for key in usual if key in registry.options(found)}
    if "method" in registry.options(found):
        method |= {"method": "lwf"}
    training = {"epochs": 1}
    values = small_runs.recipe(
        tmp_path, ("fruit", "colour"), pico("bert"), method=method, training=training
    )
    compare(Recipe.parse(values), tmp_path)


@pytest.mark.parametrize("strategy", ["balanced", "herding", "reservoir"])
def test_replay_is_counted_with_what_it_keeps(strategy, pico, tmp_path):
    method = {"name": "replay", "method": "sequential", "per_class": 4, "strategy": strategy}
    values = small_runs.recipe(tmp_path, ("fruit", "colour"), pico("bert"), method=method)
    compare(Recipe.parse(values), tmp_path)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "vcl", "coreset": 2, "sampling": "weights"},
        {"name": "td_vcl", "n": 2, "kept": 4, "replayed_share": 0.5, "peft": "full"},
    ],
)
def test_posteriors_are_counted_with_the_examples_they_keep(method, pico, tmp_path):
    values = small_runs.recipe(tmp_path, ("fruit", "colour"), pico("bert"), method=method)
    compare(Recipe.parse(values), tmp_path)


def test_a_run_that_goes_on(pico, tmp_path):
    """Of a run that has learned a task, the others are counted, as they are learned after it."""
    values = small_runs.recipe(tmp_path, ("fruit",), pico("bert"), method="sd_lora")
    Recipe.parse(values).run(tmp_path / "run")
    longer = small_runs.recipe(tmp_path, ("fruit", "colour"), pico("bert"), method="sd_lora")
    whole = Recipe.parse(longer).dry_run()
    rest = Recipe.parse(longer).dry_run(tmp_path / "run")
    assert (rest.learned, rest.tasks, rest.measured) == (1, whole.tasks[1:], 1)
    assert "1 task after 1 already learned" in str(rest)
    done = Recipe.read(tmp_path / "run").dry_run(tmp_path / "run")
    assert "no tasks left after 1 already learned" in str(done) and "Evaluation: none." in str(done)
    with pytest.raises(RunError, match="contains a run with other settings"):
        Recipe.parse(longer, ["method.rank=3"]).dry_run(tmp_path / "run")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["t5", "llama", "gpt2"])
def test_the_memory_of_frozen_weights(kind, dtype, tmp_path):
    files = ModelFiles(kind, pico_language.save(tmp_path / kind, kind))
    loaded = pretrained.open_language_model(files, dtype).model
    counted = outline.outline(str(tmp_path / kind), {"dtype": dtype})
    assert outline.frozen_bytes(counted) == sum(value.nbytes for value in loaded.parameters())
    assert counted.device.type == "meta"


def test_the_memory_of_weights_in_4_bits():
    """QLoRA: half a byte a value, a byte for 64 of them, four for 256 of those bytes."""
    model = pico_language.transformer("llama")
    linear = sum(
        layer.weight.numel()
        for layer in model.model.modules()
        if isinstance(layer, torch.nn.Linear)
    )
    others = sum(value.numel() for value in model.parameters()) - linear
    expected = linear * (1 / 2 + 1 / 64 + 4 / 64 / 256) + 4 * others
    assert quantised.bytes_in_4_bits(model) == pytest.approx(expected, abs=1)


# -- mistakes


@pytest.mark.parametrize(
    "settings",
    [
        ["method=nothing"],
        ["method.rang=3"],
        ["method.target_modules=[nothing]"],
        ["rule=magnax"],
        ["rule=regmean"],
        ["training.epochs=0"],
        ["training.packing=true", "backbone.model={t5}"],
        ["evaluation.task_ids=[known]"],
        ["stream=[{{data: nothing.csv}}]"],
        ["stream={{name: standard_cl, order: order9}}"],
        ["stream={{name: standard_cl, order: [agnews, yelpp]}}"],
        ["stream={{name: super_ni, order: [samsum, xsumm]}}"],
        ["stream=[{{benchmark: standard_cl, order: [agnews, yelpp]}}]"],
        ["backbone.max_new_tokens=3"],
        ["backbone.head=score"],
        ["method=ncm"],
    ],
    ids=lambda settings: settings[0],
)
def test_a_mistake_is_the_same_as_in_a_run(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = language_recipe(tmp_path, "llama")
    pico_language.save(tmp_path / "t5", "t5")
    changes = [setting.format(t5=tmp_path / "t5") for setting in settings]

    def message(act: str) -> str:
        with pytest.raises(PerdureError) as error:
            recipe = Recipe.parse(values, changes)
            recipe.run(tmp_path / "run") if act == "run" else recipe.dry_run()
        return str(error.value)

    assert message("dry run") == message("run")


def test_a_method_that_computes_before_it_trains(pico, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from perdure import PeftMethod\n\n\n"
        "@dataclass(kw_only=True)\n"
        "class Mine(PeftMethod):\n"
        '    """Ask for a value."""\n\n'
        "    def begin(self, backbone, task):\n"
        "        self.attach(backbone)\n"
        "        next(backbone.parameters()).sum().item()\n"
    )
    values = small_runs.recipe(tmp_path, ("fruit",), pico("bert"), method=str(tmp_path / "mine.py"))
    with pytest.raises(InputError, match="needs the model's weights before training"):
        Recipe.parse(values).dry_run()


# -- the command


def test_the_command(places, perdure, unreachable, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["run", RECIPES / "t5_large_order1.yaml", "--dry-run"]
    status, out, err = perdure(*arguments)
    assert status == 1 and "--set backbone.model=FOLDER" in err and not out
    folder = model(places, "google-t5/t5-large")
    status, out, err = perdure(*arguments, "--set", f"backbone.model={folder}", "--quiet")
    assert (status, err) == (0, "")
    table = [line.split() for line in out.splitlines() if line.startswith("  dbpedia")]
    assert table == [["dbpedia", "5,000", "500", "7,600", "79", "2,359,296", "0.32", "%"]]
    assert "at most 316 steps in total" in " ".join(out.split())
    assert out.endswith("\nNothing was written.\n")
    assert contents(tmp_path) == [] and unreachable == []
