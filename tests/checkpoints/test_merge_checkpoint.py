"""Merging on disk against plain sums, peft, and the model in memory;
what is written loads with the stock libraries.
"""

import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
import transformers
from peft_folders import TINY, adapter, base, values
from safetensors.torch import load_file, save_file

import perdure
from perdure import InputError, PerdureError, TaskVector, merge_checkpoint, registry
from perdure.checks.models import toy_task
from perdure.cli import app
from perdure.models.examples import Batch
from perdure.vectors.task_vector import LowRank

SUM = {"name": "sum"}
# peft's own, with this transformers
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def ids(size: int = 48) -> torch.Tensor:
    return torch.arange(24).reshape(2, 12) % size


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(ids()).logits


def changed(before: dict, after: dict) -> set[str]:
    assert before.keys() == after.keys()
    assert all(before[k].dtype == after[k].dtype for k in before)
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "vit"])
def test_one_adapter_is_merge_and_unload(kind, tmp_path):
    folder = base(kind, tmp_path)
    one = adapter(
        folder, tmp_path / "one", seed=1, r=4, lora_alpha=12, target_modules=TINY[kind][2]
    )
    merged = merge_checkpoint(folder, [one], SUM, tmp_path / "out")
    auto = TINY[kind][1]
    expected = (
        peft.PeftModel.from_pretrained(auto.from_pretrained(folder), one)
        .merge_and_unload()
        .state_dict()
    )
    found = auto.from_pretrained(tmp_path / "out").state_dict()
    assert found.keys() == expected.keys() and merged.written
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-6)
    before = values(folder)
    assert len(changed(before, values(tmp_path / "out"))) == merged.layers > 0


def test_the_sum_is_what_cat_gives_and_the_dense_sum(tmp_path):
    folder = base("llama", tmp_path)
    first = adapter(
        folder, tmp_path / "a", seed=1, r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"]
    )
    other = adapter(
        folder, tmp_path / "b", seed=2, r=3, lora_alpha=5, target_modules=["q_proj", "o_proj"]
    )
    merge_checkpoint(
        folder, [first, other], {"name": "task_arithmetic", "scale": 0.5}, tmp_path / "out"
    )
    dense = values(folder)
    for place, scale in ((first, 6 / 2), (other, 5 / 3)):
        parts = load_file(place / "adapter_model.safetensors")
        for name in (key for key in parts if key.endswith("lora_A.weight")):
            target = name.removeprefix("base_model.model.").replace("lora_A.", "")
            dense[target] = (
                dense[target] + 0.5 * scale * parts[name.replace("lora_A", "lora_B")] @ parts[name]
            )
    found = values(tmp_path / "out")
    assert len(changed(values(folder), found)) == 6  # in both, or in one of them only
    for name, value in dense.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-6)
    same = adapter(folder, tmp_path / "c", seed=3, r=4, lora_alpha=8, target_modules=["q_proj"])
    twin = adapter(folder, tmp_path / "d", seed=4, r=4, lora_alpha=8, target_modules=["q_proj"])
    model = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(folder), same, "c"
    )
    model.load_adapter(twin, "d")
    model.add_weighted_adapter(["c", "d"], [1.0, 1.0], "both", combination_type="cat")
    model.set_adapter("both")
    expected = logits(model)
    merge_checkpoint(folder, [same, twin], "sum", tmp_path / "two")
    found = logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "two"))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {
            "rank_pattern": {"layers.1.self_attn.q_proj": 5, "v_proj": 3},
            "alpha_pattern": {r".*\.0\..*q_proj": 7},
        },
        {"use_rslora": True, "rank_pattern": {"^model.layers.0.self_attn.q_proj": 6}},
        {"r": 1, "lora_alpha": 0.5},
    ],
)
def test_ranks_and_alphas_as_peft_reads_them(settings, tmp_path):
    folder = base("llama", tmp_path)
    one = adapter(folder, tmp_path / "one", seed=3, target_modules=["q_proj", "v_proj"], **settings)
    merge_checkpoint(folder, [one], SUM, tmp_path / "out")
    auto = transformers.AutoModelForCausalLM
    expected = (
        peft.PeftModel.from_pretrained(auto.from_pretrained(folder), one)
        .merge_and_unload()
        .state_dict()
    )
    for name, value in auto.from_pretrained(tmp_path / "out").state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-6)


def test_bfloat16_is_rounded_once(tmp_path):
    folder = base("llama", tmp_path, dtype=torch.bfloat16)
    places = [
        adapter(folder, tmp_path / n, seed=i, r=2, lora_alpha=4, exact=True)
        for i, n in enumerate("ab")
    ]
    merge_checkpoint(folder, places, SUM, tmp_path / "out")
    before, found, total = values(folder), values(tmp_path / "out"), 0
    for name in changed(before, found):
        layer = "base_model.model." + name.removesuffix(".weight")
        delta = sum(
            2.0 * parts[f"{layer}.lora_B.weight"] @ parts[f"{layer}.lora_A.weight"]
            for parts in (load_file(place / "adapter_model.safetensors") for place in places)
        )
        assert torch.equal(found[name], (before[name].float() + delta).bfloat16())
        total += 1
    assert total == 4 and found["model.norm.weight"].dtype == torch.bfloat16


def test_shards_stay_as_they_are(tmp_path):
    folder = base("llama", tmp_path, max_shard_size="6KB")
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(shards) > 3
    one = adapter(folder, tmp_path / "one", seed=1, target_modules=["q_proj"])
    merge_checkpoint(folder, [one], SUM, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == shards
    same = [
        (folder / name).read_bytes() == (tmp_path / "out" / name).read_bytes() for name in shards
    ]
    assert any(same) and not all(same)  # those in which nothing changes are equal to the last byte
    index = [
        json.loads((f / "model.safetensors.index.json").read_text())
        for f in (folder, tmp_path / "out")
    ]
    assert index[0]["weight_map"] == index[1]["weight_map"]
    assert index[0]["metadata"]["total_size"] == index[1]["metadata"]["total_size"]
    auto = transformers.AutoModelForCausalLM
    expected = logits(peft.PeftModel.from_pretrained(auto.from_pretrained(folder), one))
    torch.testing.assert_close(
        logits(auto.from_pretrained(tmp_path / "out")), expected, atol=1e-5, rtol=1e-5
    )


def test_embeddings_and_untied_heads(tmp_path):
    folder = base("llama", tmp_path)
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        one = adapter(
            folder, tmp_path / "one", seed=1, target_modules=["embed_tokens", "q_proj", "lm_head"]
        )
    assert any("base_layer" in name for name in load_file(one / "adapter_model.safetensors"))
    merge_checkpoint(folder, [one], SUM, tmp_path / "out")
    auto = transformers.AutoModelForCausalLM
    expected = logits(peft.PeftModel.from_pretrained(auto.from_pretrained(folder), one))
    torch.testing.assert_close(
        logits(auto.from_pretrained(tmp_path / "out")), expected, atol=1e-5, rtol=1e-5
    )
    merge_checkpoint(folder, [one], SUM, tmp_path / "lora", form="adapter")
    again = peft.PeftModel.from_pretrained(auto.from_pretrained(folder), tmp_path / "lora")
    torch.testing.assert_close(logits(again), expected, atol=1e-5, rtol=1e-5)


def test_convolutions_and_renamed_layers(tmp_path):
    """DINOv2's layers have other names in memory than on disk."""
    folder = base("dinov2", tmp_path)
    one = adapter(folder, tmp_path / "one", seed=1, target_modules=["projection", "q_proj", "fc1"])
    merged = merge_checkpoint(folder, [one], SUM, tmp_path / "out")
    merge_checkpoint(folder, [one], SUM, tmp_path / "lora", form="adapter")
    auto, pixels = transformers.AutoModel, torch.randn(2, 3, 16, 16)
    expected = (
        peft.PeftModel.from_pretrained(auto.from_pretrained(folder), one)
        .eval()(pixels)
        .last_hidden_state
    )
    found = auto.from_pretrained(tmp_path / "out").eval()(pixels).last_hidden_state
    again = peft.PeftModel.from_pretrained(auto.from_pretrained(folder), tmp_path / "lora").eval()(
        pixels
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again.last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    assert merged.layers == 5


def test_a_prefix_of_the_base_model_is_found(pico, tmp_path):
    """An adapter of BertModel on a checkpoint of BertForSequenceClassification,
    and the other way round.
    """
    whole = pico("bert")
    inner = tmp_path / "inner"
    transformers.AutoModel.from_pretrained(whole).save_pretrained(inner)
    small = adapter(
        inner, tmp_path / "small", seed=1, target_modules=["query"], auto=transformers.AutoModel
    )
    large = adapter(whole, tmp_path / "large", seed=1, target_modules=["query"])
    found = []
    for place, on in ((small, whole), (large, inner)):
        merge_checkpoint(on, [place], SUM, tmp_path / f"{place.name}-out", any_base=True)
        merge_checkpoint(
            on,
            [place, large if place is small else small],
            SUM,
            tmp_path / "x",
            any_base=True,
            dry_run=True,
        )
        found.append(
            transformers.AutoModel.from_pretrained(tmp_path / f"{place.name}-out").state_dict()
        )
    before = transformers.AutoModel.from_pretrained(whole).state_dict()
    for place, after in zip((small, large), found, strict=True):
        parts = load_file(place / "adapter_model.safetensors")
        key = next(name for name in parts if "layer.1" in name and "lora_A" in name)
        delta = 2.0 * parts[key.replace("lora_A", "lora_B")] @ parts[key]
        name = "encoder.layer.1.attention.self.query.weight"
        torch.testing.assert_close(after[name] - before[name], delta, atol=1e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def run(tmp_path_factory, pico):
    """A run of two tasks on a pico BERT with the stock pooling:
    each adapter holds its task's head.
    """
    folder = tmp_path_factory.mktemp("runs") / "run"
    tasks = (
        toy_task("fruit", ["apple", "pear"], 1),
        toy_task("colour", ["red", "green", "blue"], 2),
    )
    backbone = perdure.Backbone.load(pico("bert"), pooling="stock", max_length=16)
    stream = perdure.TaskStream("two", tasks)
    training = perdure.Training(epochs=1, batch_size=16, learning_rate=1e-2)
    from perdure.methods.isolated import Isolated

    return perdure.run(
        stream, backbone, Isolated(rank=2), perdure.Rule(), output=folder, training=training
    )


def test_the_adapters_of_a_run_give_its_combined_model(run, pico, tmp_path):
    places = sorted(run.folder.glob("tasks/*/adapter"))
    with pytest.raises(InputError, match="--saved-modules`: fruit, colour, or `none`"):
        merge_checkpoint(pico("bert"), places, output=tmp_path / "out")
    merge_checkpoint(pico("bert"), places, output=tmp_path / "out", saved_modules="none")
    merge_checkpoint(pico("bert"), places, output=tmp_path / "colour", saved_modules="colour")
    model = perdure.Model(run)
    batch = {"input_ids": ids() + 2, "attention_mask": torch.ones(2, 12, dtype=torch.long)}
    with model.combined.applied(model.backbone), torch.no_grad():
        expected = model.backbone.eval()(Batch(batch))
        head = model.backbone.own("colour")(expected)
    auto = transformers.AutoModelForSequenceClassification
    merged = auto.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        hidden = merged.bert(**batch).pooler_output
        found = auto.from_pretrained(tmp_path / "colour").eval()(**batch).logits
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, head, atol=1e-5, rtol=1e-5)
    assert "tokenizer.json" in {path.name for path in (tmp_path / "out").iterdir()}
    assert auto.from_pretrained(tmp_path / "colour").config.num_labels == 3


def test_try_another_rule_on_a_run(run, tmp_path, monkeypatch):
    """The recipe of a run made in Python has no tasks to measure (`test_cli` has one that does)."""
    from perdure.evaluation.measure import Measurement
    from perdure.runs import extend as runs

    called = []

    def measured(*given, **more):
        called.append((given, more))
        rule = runs.rule_of(run.state, given[1], given[2])
        return Measurement(2, rule, rule, [], {}, [], 0.0)

    monkeypatch.setattr(runs, "_measured_again", measured)
    runs.try_rule(run.folder, "task_arithmetic", ["scale=0.25"], tmp_path / "out")
    assert called == [
        (
            (run.folder, "task_arithmetic", ["scale=0.25"]),
            {"steps": "last", "trust": False, "quiet": True},
        )
    ]
    scaled = values(tmp_path / "out")
    runs.try_rule(run.folder, "sum", [], tmp_path / "sum")
    name = "bert.encoder.layer.0.attention.self.query.weight"
    before = values(Path(run.recipe["backbone"]["model"]))[name]
    torch.testing.assert_close(4 * (scaled[name] - before), values(tmp_path / "sum")[name] - before)


def test_as_an_adapter(tmp_path):
    folder = base("llama", tmp_path)
    places = [
        adapter(folder, tmp_path / f"r{r}", seed=r, r=r, rank_pattern={"o_proj": 5}) for r in (2, 3)
    ]
    auto = transformers.AutoModelForCausalLM
    merge_checkpoint(folder, places, SUM, tmp_path / "whole")
    expected = logits(auto.from_pretrained(tmp_path / "whole"))
    exact = merge_checkpoint(folder, places, SUM, tmp_path / "exact", form="adapter")
    assert exact.error == 0
    config = json.loads((tmp_path / "exact" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] and {
        config["r"],
        *config["rank_pattern"].values(),
    } == {5, 10}
    found = logits(peft.PeftModel.from_pretrained(auto.from_pretrained(folder), tmp_path / "exact"))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    rough = merge_checkpoint(folder, places, SUM, tmp_path / "rough", form="adapter", rank=2)
    merge_checkpoint(folder, [tmp_path / "rough"], SUM, tmp_path / "back")
    before, whole, back = values(folder), values(tmp_path / "whole"), values(tmp_path / "back")
    missed = sum((whole[n] - back[n]).square().sum() for n in before) ** 0.5
    size = sum((whole[n] - before[n]).square().sum() for n in before) ** 0.5
    assert 0.05 < rough.error < 1 and rough.error == pytest.approx((missed / size).item(), rel=1e-3)
    assert f"{rough.error:.2e}" in (
        tmp_path / "rough" / "README.md"
    ).read_text() and f"{rough.error:.2e}" in str(rough)


RULES = '''
import torch
from perdure.vectors.task_vector import Deferred, TaskVector, total
def dense(vectors):
    """Full matrices, made on demand."""
    made = total(list(vectors.values()))
    return TaskVector({k: Deferred(v.shape, v.dense) for k, v in made.items()})
'''


def test_full_matrices(tmp_path):
    (tmp_path / "dense.py").write_text(RULES)
    (tmp_path / "parts.py").write_text("def parts(vectors):\n    return vectors\n")
    folder = base("gpt2", tmp_path)
    places = [
        adapter(folder, tmp_path / n, seed=i, target_modules=["c_attn", "c_proj"])
        for i, n in enumerate("ab")
    ]
    merge_checkpoint(folder, places, SUM, tmp_path / "low")
    merge_checkpoint(folder, places, str(tmp_path / "dense.py"), tmp_path / "full")
    for name, value in values(tmp_path / "low").items():
        torch.testing.assert_close(values(tmp_path / "full")[name], value, atol=1e-6, rtol=1e-6)
    with pytest.raises(InputError, match="give `--rank`"):
        merge_checkpoint(
            folder, places, str(tmp_path / "dense.py"), tmp_path / "no", form="adapter"
        )
    merged = merge_checkpoint(
        folder, places, str(tmp_path / "dense.py"), tmp_path / "svd", form="adapter", rank=16
    )
    assert merged.error < 1e-6
    merge_checkpoint(folder, [tmp_path / "svd"], SUM, tmp_path / "again")
    for name, value in values(tmp_path / "low").items():
        torch.testing.assert_close(values(tmp_path / "again")[name], value, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="is routed"):
        merge_checkpoint(folder, places, str(tmp_path / "parts.py"), tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_statistics_of_inputs_reach_the_rule(tmp_path):
    (tmp_path / "seen.py").write_text(
        "from perdure.merging.rule import nature\n"
        "@nature('sequential', state='nothing', needs=['inputs'])\n"
        "def seen(vectors, inputs):\n    seen.value = inputs\n"
        "    return next(iter(vectors.values()))\n"
    )
    folder = base("llama", tmp_path)
    place = adapter(
        folder, tmp_path / "task" / "adapter", seed=1, target_modules=["q_proj", "k_proj"]
    )

    def call():
        merge_checkpoint(folder, [place], str(tmp_path / "seen.py"), tmp_path / "out", dry_run=True)

    with pytest.raises(PerdureError, match=r"no `inputs.safetensors` in or next to"):
        call()
    names = [f"model.layers.{i}.self_attn" for i in (0, 1)]
    kept = {f"{name}.q_proj,{name}.k_proj": torch.eye(16) * (i + 1) for i, name in enumerate(names)}
    save_file(kept, place.parent / "inputs.safetensors")
    call()
    seen = registry.find("rule", str(tmp_path / "seen.py")).value["task"]
    assert seen[f"{names[1]}.k_proj"][0, 0] == 2 and len(seen) == 4
    save_file({key: value[:3] for key, value in kept.items()}, place.parent / "inputs.safetensors")
    with pytest.raises(PerdureError, match=r"finite matrix of shape \(16, 16\)"):
        call()


def test_dry_run_card_and_command_line(tmp_path, monkeypatch, capsys):
    folder = base("llama", tmp_path)
    places = [adapter(folder, tmp_path / n, seed=i) for i, n in enumerate(("first", "second"))]

    def call(*more):
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setattr(sys, "argv", ["perdure", "merge", *map(str, (folder, *places, *more))])
        with pytest.raises(SystemExit) as stop:
            app.main()
            raise SystemExit(0)
        return int(stop.value.code or 0), *capsys.readouterr()

    status, out, err = call("--rule", "task_arithmetic", "--set", "scale=0.3", "--dry-run")
    assert (
        (status, err) == (0, "")
        and "4 layers change" in out
        and "Would write" in out
        and "free" in out
    )
    assert "first: rank 4, alpha 8, 4 layers" in out and "of memory" in out
    assert max(len(line) for line in out.splitlines() if str(tmp_path) not in line) <= 80
    status, out, err = call("--set", "scale=0.3", "-o", tmp_path / "out")
    assert status == 0 and "Written" in out and max(map(len, err.splitlines() or [""])) <= 80
    size = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        card.startswith("---\nlibrary_name: transformers\n")
        and "`scale=0.3`" in card
        and "rank 4, alpha 8" in card
    )
    assert abs(merge_checkpoint(folder, places, SUM, dry_run=True).size - size) < 5000
    assert call("--set", "scale=0.3", "-o", tmp_path / "lora", "--as", "adapter", "--quiet") == (
        0,
        f"{tmp_path / 'lora'}\n",
        "",
    )
    for wrong, message in [
        (("-o", tmp_path / "out"), "already exists and is not empty"),
        (("-o", tmp_path / "new", "--rank", "3"), "only with `--as adapter`"),
        ((), "Give `--output`"),
        (("-o", tmp_path / "new", "--set", "scael=1"), "Did you mean `scale`?"),
        (("-o", tmp_path / "new", "--set", "scale=search"), "needs the tasks' validation data"),
        (
            ("-o", tmp_path / "new", "--set", "space=factor"),
            "`space` is only for rules in a run",
        ),
        (("-o", tmp_path / "new", "--saved-modules", "frist"), "Did you mean `first`?"),
    ]:
        status, out, err = call(*wrong)
        assert status == 1 and message in err and err.count("\n") == 1, err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "first",
        "llama",
        "lora",
        "out",
        "second",
    ]
    status, _, err = call("-o", tmp_path / "new", "--as", "both")
    assert status == 2 and "'adapter'" in err


def test_merging_imports_no_transformers(tmp_path):
    folder = base("llama", tmp_path)
    place = adapter(folder, tmp_path / "one", seed=1)
    code = (
        "import sys; from perdure import merge_checkpoint; "
        "merge_checkpoint(*sys.argv[1:2], sys.argv[2:3], 'sum', sys.argv[3]); "
        "heavy = ('transformers', 'peft', 'datasets'); "
        "sys.exit(str([m for m in heavy if m in sys.modules]))"
    )
    command = [sys.executable, "-c", code, str(folder), str(place), str(tmp_path / "out")]
    assert subprocess.run(command, capture_output=True, text=True).stderr.strip() == "[]"
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_merged_values_by_hand():
    """ΔW of a stored transposed weight, a few rows at a time."""
    from perdure.checkpoints.fold import Change

    entry = LowRank(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[1.0, 10.0]]))
    assert [block.tolist() for block in Change(lambda: entry).blocks(3, 2, torch.empty(4))] == [
        [[1.0, 10.0], [2.0, 20.0]],
        [[3.0, 30.0]],
    ]
    turned = Change(lambda: entry, transposed=True).blocks(
        2, 1, torch.empty(3, dtype=torch.float64)
    )
    assert [block.tolist() for block in turned] == [[[1.0, 2.0, 3.0]], [[10.0, 20.0, 30.0]]]
    assert TaskVector({"w": entry}).dense("w").shape == (3, 2)


# -- what is not to be lost in silence


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`")
def test_a_weight_that_one_adapter_changes_and_another_replaces_is_refused(tmp_path):
    folder = base("llama", tmp_path, tie_word_embeddings=False)
    changed = adapter(folder, tmp_path / "q", seed=1, target_modules=["q_proj", "embed_tokens"])
    replaced = adapter(folder, tmp_path / "r", seed=2, modules_to_save=["embed_tokens"])
    with pytest.raises(
        InputError, match=r"embed_tokens` is changed by the adapter `q`, and replaced by"
    ):
        merge_checkpoint(folder, [changed, replaced], SUM, tmp_path / "out")
    merge_checkpoint(folder, [changed, replaced], SUM, tmp_path / "out", saved_modules="none")


@pytest.mark.parametrize("rule", ["tsv", "iso", "knots", SUM])
def test_an_adapter_that_changes_nothing_can_be_written(rule, tmp_path):
    folder = base("llama", tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(
        tmp_path / "fresh"
    )
    merge_checkpoint(folder, [tmp_path / "fresh"], rule, tmp_path / "out", form="adapter")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    expected = logits(model)
    torch.testing.assert_close(
        logits(peft.PeftModel.from_pretrained(model, tmp_path / "out")), expected
    )


def test_saved_modules_are_written_as_the_adapter_spells_them(pico, tmp_path):
    """The base is a plain encoder, the adapter of a classifier that holds it as `bert`."""
    encoder = transformers.AutoModel.from_pretrained(pico("bert"))
    encoder.save_pretrained(tmp_path / "encoder")
    config = peft.LoraConfig(
        target_modules=["query"], modules_to_save=["classifier", "pooler"], task_type="SEQ_CLS"
    )
    auto = transformers.AutoModelForSequenceClassification
    torch.manual_seed(0)
    made = peft.get_peft_model(auto.from_pretrained(tmp_path / "encoder", num_labels=3), config)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    made.save_pretrained(tmp_path / "one")
    merge_checkpoint(
        tmp_path / "encoder", [tmp_path / "one"], SUM, tmp_path / "out", form="adapter"
    )
    batch = {"input_ids": ids() + 2, "attention_mask": torch.ones(2, 12, dtype=torch.long)}
    fresh = auto.from_pretrained(tmp_path / "encoder", num_labels=3)
    found = peft.PeftModel.from_pretrained(fresh, tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(
            found(**batch).logits, made.eval()(**batch).logits, rtol=0, atol=1e-5
        )


def test_code_in_the_base_folder_is_never_run(tmp_path):
    folder = base("llama", tmp_path)
    one = adapter(folder, tmp_path / "one", seed=1)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: ...\n")
    tensors = {
        f"other.{name}": value for name, value in load_file(folder / "model.safetensors").items()
    }
    save_file(
        {name.replace("self_attn", "attn"): value for name, value in tensors.items()},
        folder / "model.safetensors",
    )
    with pytest.raises(PerdureError, match="has no weight of that name"):
        merge_checkpoint(folder, [one], SUM, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (1e39, "not be finite"),
        ({"one": float("nan")}, "`scale`, `one` must be a finite number"),
        ({"one": []}, r"needs a number for the task `one`, got \[\]"),
        ({"one": 1.0, "two": 1.0}, r"No adapter \(in `scale`\) named `two`"),
    ],
)
@pytest.mark.parametrize("form", ["model", "adapter"])
def test_scales_that_are_none(scale, message, form, tmp_path):
    folder = base("llama", tmp_path)
    one = adapter(folder, tmp_path / "one", seed=1)
    with pytest.raises(PerdureError, match=message):
        merge_checkpoint(
            folder, [one], {"name": "task_arithmetic", "scale": scale}, tmp_path / "out", form=form
        )
    assert not (tmp_path / "out").exists()


def test_a_run_or_an_adapter_is_no_base(run, tmp_path):
    folder = base("llama", tmp_path)
    one = adapter(folder, tmp_path / "one", seed=1)
    with pytest.raises(PerdureError, match="is an adapter, not a model"):
        merge_checkpoint(one, [one], SUM, tmp_path / "out")
    with pytest.raises(PerdureError, match="is a run: give only its folder"):
        merge_checkpoint(run.folder, [one], SUM, tmp_path / "out")
