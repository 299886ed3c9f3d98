"""A task's adapter and an export, loaded by stock peft and transformers, answer as `predict`
does."""

import json
from pathlib import Path

import language_runs
import peft
import pytest
import safetensors.torch
import torch
import transformers

import perdure
from perdure import InputError, Model, Run, RunError
from perdure.runs.export import RANKS

# peft 0.21 asks transformers 5.24 for a name that it is about to rename
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
PROMPTS = ["aaa 1:", "bbb 22:", "something else"]
KINDS = ["llama", "gpt2", "t5"]


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory) -> Run:
    """A run that has learned a closed task and one that is answered with free text."""
    folder = tmp_path_factory.mktemp(request.param)
    tasks = [language_runs.closed("mood"), language_runs.free()]
    return language_runs.run(folder, request.param, tasks)


def stock(folder: Path, kind: str):
    auto = transformers.AutoModelForCausalLM
    if kind == "t5":
        auto = transformers.AutoModelForSeq2SeqLM
    return auto.from_pretrained(folder)


def kind_of(run: Run) -> str:
    return run.folder.name.removeprefix("run-")


def written(model, tokenizer, prompt: str, **settings) -> str:
    """The greedy text of a stock model."""
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        tokens = model.generate(**inputs, **settings)[0]
    if not model.config.is_encoder_decoder:
        tokens = tokens[inputs["input_ids"].shape[1] :]
    return tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_the_folder_of_a_task_is_one_that_peft_loads(run):
    kind = kind_of(run)
    adapter = run.folder / "tasks" / "01-story" / "adapter"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["task_type"] == ("SEQ_2_SEQ_LM" if kind == "t5" else "CAUSAL_LM")
    # vLLM takes no others
    assert config["modules_to_save"] is None and config["bias"] == "none"
    assert not config["use_dora"] and not config["rank_pattern"]
    base = stock(run.folder.parent / kind, kind)
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.folder.parent / kind)
    plain = [written(base, tokenizer, p, max_new_tokens=12, do_sample=False) for p in PROMPTS]
    loaded = peft.PeftModel.from_pretrained(base, adapter).eval()
    texts = [written(loaded, tokenizer, p, max_new_tokens=12, do_sample=False) for p in PROMPTS]
    own = Model(run, rule="routed").predict(PROMPTS, task="story")
    assert texts == [answer.answer for answer in own]
    assert texts != plain and any(texts)


def test_an_export_answers_greedily_and_stops(run, tmp_path):
    kind = kind_of(run)
    model = Model(run)
    model.export(tmp_path / "out")
    loaded = stock(tmp_path / "out", kind)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    # without a setting: the folder says itself how it generates
    texts = [written(loaded, tokenizer, prompt) for prompt in PROMPTS]
    assert texts == [answer.answer for answer in model.predict(PROMPTS, task="story")]
    settings = loaded.generation_config
    assert settings.max_new_tokens == 12 and settings.eos_token_id in (1, [1])
    assert not settings.do_sample


@pytest.mark.parametrize("padded", [False, True])
def test_an_exported_adapter_answers_as_the_model(padded, run, tmp_path):
    kind = kind_of(run)
    model = Model(run)
    model.export(tmp_path / "out", form="adapter", pad_rank=padded)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == (8 if padded else 4)  # two tasks of rank 2
    assert not config["rank_pattern"] and config["modules_to_save"] is None
    assert (config["r"] in RANKS) or not padded
    weights = safetensors.torch.load_file(tmp_path / "out" / "adapter_model.safetensors")
    ranks = {len(value) for name, value in weights.items() if "lora_A" in name}
    assert ranks == {config["r"]}
    loaded = peft.PeftModel.from_pretrained(
        stock(run.folder.parent / kind, kind), tmp_path / "out"
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(run.folder.parent / kind)
    texts = [written(loaded, tokenizer, p, max_new_tokens=12, do_sample=False) for p in PROMPTS]
    assert texts == [answer.answer for answer in model.predict(PROMPTS, task="story")]


def test_the_card_shows_code_that_answers(run, tmp_path, monkeypatch, capsys):
    model = Model(run)
    prompt = "a prompt"
    monkeypatch.chdir(tmp_path)
    expected = model.predict([prompt], task="story")[0].answer
    for form in ("model", "adapter"):
        model.export(tmp_path / form, form=form)
        page = (tmp_path / form / "README.md").read_text()
        assert "free text" in page and "pipeline_tag: text" in page
        assert str(tmp_path) not in page
        code = page.split("```python\n")[1].split("```")[0]
        # an adapter's base is on this machine, where the card does not say
        here = str(run.folder.parent / kind_of(run))
        exec(code.replace(f'"{kind_of(run)}"', f'"{here}"'), {})
        assert capsys.readouterr().out.strip() == expected


def test_what_cannot_be_exported_says_what_to_do(run, tmp_path):
    with pytest.raises(RunError, match="is routed.*Choose another with `--rule`"):
        Model(run, rule="routed").export(tmp_path / "out")
    with pytest.raises(InputError, match="full matrix.*give `--rank`"):
        Model(run, rule="ties").export(tmp_path / "out", form="adapter")
    with pytest.raises(InputError, match="are for `--as adapter`"):
        Model(run).export(tmp_path / "out", pad_rank=True)
    assert not (tmp_path / "out").exists()
    Model(run, rule="ties").export(tmp_path / "out", form="adapter", rank=1)
    assert "leaves out" in (tmp_path / "out" / "README.md").read_text()


def test_an_encoder_has_no_such_adapter(pico, tmp_path):
    backbone = perdure.Backbone.load(pico("bert"), pooling="mean", max_length=8)
    method = perdure.find("method", "isolated")(rank=2)
    tasks = (language_runs.closed("mood"),)
    training = perdure.Training(epochs=1)
    output = tmp_path / "run"
    run = perdure.run(
        perdure.TaskStream("one", tasks), backbone, method, output=output, training=training
    )
    with pytest.raises(InputError, match="`--as adapter` is for language models"):
        Model(run).export(tmp_path / "out", form="adapter")
