"""Methods on language models: they remember the tokens that a layer reads, example by example."""

import json
import random
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from pico_language import language_model, save
from torch import nn

from perdure import (
    Backbone,
    BackboneError,
    InputError,
    Task,
    TaskStream,
    Training,
    learn,
    run,
    task_vectors,
)
from perdure.data.exemplars import Exemplars
from perdure.data.task import TaskRows
from perdure.errors import RunError
from perdure.learning.loop import Session
from perdure.merging.combine import folded
from perdure.methods.ewc import EWC
from perdure.methods.inflora import InfLoRA
from perdure.methods.isolated import Isolated
from perdure.methods.mas import _norms
from perdure.methods.ncm import NCM
from perdure.methods.parts import per_example
from perdure.methods.parts.fisher import fisher
from perdure.methods.parts.per_example import mean_over_examples
from perdure.methods.parts.surprise import surprises
from perdure.methods.parts.weight_fisher import weight_fisher
from perdure.methods.replay import Replay
from perdure.methods.sequential import Sequential
from perdure.models import adapters
from perdure.models.inputs import input_covariances
from perdure.models.language import WHOLE_AT_ONCE
from perdure.models.text_examples import TextExamples
from perdure.vectors.task_vector import total

FEW = Training(epochs=1, batch_size=8, learning_rate=0.01)
KINDS = ["llama", "t5"]


def free(name: str, size: int = 10) -> Task:
    """A task that is answered with the last letters of its prompt, which are of many lengths."""
    rng = random.Random(name)

    def rows(count: int) -> Dataset:
        texts = [
            name + " " + "".join(rng.choices("abcde", k=rng.randint(1, 12))) for _ in range(count)
        ]
        return Dataset.from_dict(
            {"text": texts, "target": [text[-(i % 3 + 1) :] for i, text in enumerate(texts)]}
        )

    return Task(name, (), train=rows(size), validation=rows(2), test=rows(2), score="exact_match")


def closed(name: str, classes: tuple[str, ...], size: int = 10) -> Task:
    rng = random.Random(name)

    def rows(count: int) -> Dataset:
        labels = [i % len(classes) for i in range(count)]
        texts = [f"{name} {label}" + "x" * rng.randint(0, 7) for label in labels]
        return Dataset.from_dict({"text": texts, "label": labels})

    return Task(name, classes, train=rows(size), validation=rows(2), test=rows(2))


# -- what goes into a layer


@torch.no_grad()
def plain_covariances(backbone, task: Task, layers: list[str]) -> dict[str, torch.Tensor]:
    """E[x xᵀ] of each layer, with hooks, of one example at a time: nothing is padding."""
    backbone.eval()
    examples = backbone.encode(task.rows("train"))
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in layers}

    def hook(name: str):
        return lambda layer, given: inputs[name].append(given[0].flatten(0, -2).double())

    handles = [
        backbone.model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in layers
    ]
    for tokens in examples.inputs:
        prompt, answer = list(tokens.prompt), list(tokens.answer)
        if backbone.decodes:
            start = backbone.model.config.decoder_start_token_id
            given = {"input_ids": [prompt], "decoder_input_ids": [[start, *answer[:-1]]]}
        else:
            given = {"input_ids": [[*prompt, *answer]]}
        backbone.model(**{name: torch.tensor(value) for name, value in given.items()})
    for handle in handles:
        handle.remove()
    covariances = {}
    for name, values in inputs.items():
        x = torch.cat(values)
        covariances[name] = x.T @ x / len(x)
    return covariances


def in_attention(backbone) -> list[str]:
    projections = ("q", "k", "v", "q_proj", "k_proj", "v_proj")
    names = []
    for name, layer in backbone.model.named_modules():
        if isinstance(layer, nn.Linear) and name.split(".")[-1] in projections:
            names.append(name)
    return names


@pytest.mark.parametrize("kind", ["llama", "t5", "bart"])
def test_covariances_are_of_the_tokens_that_a_layer_reads(kind):
    backbone, task = language_model(kind), free("one")
    layers = in_attention(backbone)
    expected = plain_covariances(backbone, task, layers)
    examples = backbone.encode(task.rows("train"))
    groups = input_covariances(backbone, examples, layers)
    assert sorted(name for group in groups for name in group) == sorted(layers)
    for group, covariance in groups.items():
        for name in group:
            torch.testing.assert_close(covariance, expected[name], atol=1e-5, rtol=1e-5)
    if kind != "llama":
        # keys and values of cross-attention read the encoder's states, in every block the same
        crossed = [
            g for g in groups if any("EncDec" in name or "encoder_attn" in name for name in g)
        ]
        assert sorted(len(group) for group in crossed) == [1, 1, 4]


@pytest.mark.parametrize("design", ["both", "new_task"])
def test_a_branch_leaves_old_inputs_alone_in_cross_attention_too(design):
    """u C u <= sqrt(1 - epsilon) |C| for each row u of the new branch, C of the old inputs."""
    backbone = language_model("t5")
    tasks = [free("other"), free("one"), free("two")]
    epsilon = 0.9999
    method = InfLoRA(
        rank=1,
        epsilon=epsilon,
        last_epsilon=epsilon,
        target_modules=["q", "k", "v"],
        design=design,
    )
    # The first task takes up a direction less than epsilon asks for, as in the official code.
    first = learn(backbone, tasks[:1], method, FEW)
    second = learn(backbone, tasks[:2], method, FEW, earlier=[first])
    layers = list(adapters.factors(backbone.model))
    with folded(backbone.model, total(list(task_vectors([first]).values()))):
        covariances = plain_covariances(backbone, tasks[1], layers)
    third = learn(backbone, tasks, method, FEW, earlier=[first, second])
    leaks = {}
    for name in layers:
        B, C = third.parameters[f"{name}.lora_A.weight"].double(), covariances[name]
        rows = B[B.norm(dim=1) > 0]
        assert len(rows) and third.parameters[f"{name}.lora_B.weight"].any()
        rows = rows / rows.norm(dim=1, keepdim=True)
        bound = (1 - epsilon) ** 0.5 * C.norm()
        leaks[name] = ((rows @ C * rows).sum(1).max() / bound).item()
    crossed = {leak for name, leak in leaks.items() if "EncDecAttention" in name}
    assert len(crossed) > 2
    if design == "both":
        assert max(leaks.values()) < 1
    else:  # the bound is one that a branch without the design does not keep
        assert min(leaks.values()) > 1


# -- each example by itself


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", [None, "all"])
def test_importance_is_that_of_one_example_at_a_time(kind, targets):
    """Layers read all tokens of an example, and the output layer reads those of all answers."""
    backbone, task = language_model(kind), free("one")
    every = ["q", "v", "wi", "wo"] if kind == "t5" else ["q_proj", "o_proj", "down_proj", "lm_head"]
    torch.manual_seed(0)
    Sequential(rank=2, target_modules=every if targets else None).attach(backbone)
    for _, B in adapters.factors(backbone.model).values():
        nn.init.normal_(B, std=0.1)
    examples = backbone.encode(task.rows("train"))
    information = fisher(backbone, examples, "empirical")
    importance = mean_over_examples(backbone, examples, _norms, torch.abs)

    parameters = adapters.trainable(backbone.model)
    assert parameters.keys() == information.keys() and (len(parameters) > 8 or not targets)
    expected = {name: torch.zeros_like(value) for name, value in parameters.items()}
    squares = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for tokens in examples.inputs:
        prompt, answer = list(tokens.prompt), list(tokens.answer)
        if kind == "t5":
            output = backbone.model(input_ids=torch.tensor([prompt]), labels=torch.tensor([answer]))
            logits = output.logits[0]
        else:
            ids = torch.tensor([[*prompt, *answer]])
            logits = backbone.model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        loss = nn.functional.cross_entropy(logits, torch.tensor(answer))
        norm = logits.square().sum(1).mean()
        for sums, value, f in ((expected, loss, torch.square), (squares, norm, torch.abs)):
            gradients = torch.autograd.grad(value, list(parameters.values()), retain_graph=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                sums[name] += f(gradient) / len(examples)
    for name in parameters:
        torch.testing.assert_close(information[name], expected[name], atol=1e-6, rtol=1e-3)
        torch.testing.assert_close(importance[name], squares[name], atol=1e-3, rtol=1e-3)
        assert information[name].any()


@pytest.mark.parametrize("importance", [fisher, weight_fisher])
def test_a_pass_for_gradients_of_single_examples_reads_few_prompts(importance, monkeypatch):
    """The activations of all of their tokens are in memory."""
    monkeypatch.setattr(per_example, "PROMPTS", 3)
    backbone = language_model("llama")
    Sequential(rank=2).attach(backbone)
    examples = backbone.encode(free("one").rows("train"))
    sizes = []
    backbone.register_forward_hook(lambda backbone, inputs, output: sizes.append(len(inputs[0])))
    importance(backbone, examples, "empirical")
    assert max(sizes) == 3 and sum(sizes) >= len(examples)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sampled_fisher_needs_no_classes(kind):
    backbone = language_model(kind)
    Sequential(rank=2).attach(backbone)
    examples = backbone.encode(free("one").rows("train"))
    torch.manual_seed(0)
    first = fisher(backbone, examples, "sampled")
    torch.manual_seed(0)
    again = fisher(backbone, examples, "sampled")
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(value.any() for value in first.values())


@pytest.mark.parametrize(
    ("method", "instead"),
    [(EWC(labels="true"), "Use `labels: sampled`"), (NCM(), "such as `isolated` or `inflora`")],
)
def test_what_needs_heads_says_what_to_take_instead(method, instead, tmp_path):
    stream = TaskStream("closed", (closed("fruit", ("apple", "pear")),))
    with pytest.raises(InputError, match=instead):
        run(stream, language_model("llama"), method, training=FEW, output=tmp_path / "r")
    assert not (tmp_path / "r" / "tasks").exists()


# -- replay


@pytest.mark.parametrize("strategy", ["balanced", "herding", "surprise", "reservoir"])
@pytest.mark.parametrize("kind", KINDS)
def test_replay_keeps_answers_in_words(kind, strategy):
    backbone = language_model(kind)
    tasks = [free("echo"), closed("fruit", ("apple", "pear")), free("more")]
    method = Replay(method=Sequential(rank=2), per_class=3, strategy=strategy)
    for step in range(1, 4):
        learn(backbone, tasks[:step], method, FEW)
    kept = Exemplars.of(method.state)
    # three of each class; a free task counts as one
    assert len(kept) == 3 * (1 + 2 + 1) and set(kept.labels) == {"echo", "fruit", "more"}
    if strategy != "reservoir":
        assert kept.counts == {"echo": 3, "fruit": 6, "more": 3}
    _, *old = method.examples(tasks)
    for (name, data, classes), task in zip(old, tasks[:2], strict=True):
        answer = "label" if task.classes else "target"
        learned = set(zip(task.train["text"], task.train[answer], strict=True))
        assert name == task.name and classes == task.classes
        assert set(zip(data["text"], data[answer], strict=True)) <= learned
    texts = sum(
        len(text.encode()) for inputs in kept.inputs.values() for text in map(bytes.decode, inputs)
    )
    assert method.store_bytes == kept.size == texts


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_surprises_are_the_loss_of_the_whole_text(kind):
    """As transformers computes it, of one example at a time."""
    backbone, task = language_model(kind), free("one")
    examples = backbone.encode(task.rows("train"))
    expected = []
    for tokens in examples.inputs:
        if kind == "t5":
            inputs = {"input_ids": tokens.prompt, "labels": tokens.answer}
        else:
            whole = (*tokens.prompt, *tokens.answer)
            inputs = {"input_ids": whole, "labels": whole}
        given = {name: torch.tensor([ids]) for name, ids in inputs.items()}
        with torch.no_grad():
            expected.append(backbone.model(**given).loss)
    backbone.train()
    torch.testing.assert_close(surprises(backbone, examples), torch.stack(expected))
    assert backbone.training and len(expected) > 2 * WHOLE_AT_ONCE


def test_a_surprising_prompt_is_kept_whatever_its_answer():
    """Of prompts with the same answer, the one unlike the others."""
    model = language_model("llama")
    texts = ["say it again:"] * 20
    texts[7] = "ÿþ zqx 93!"
    rows = Dataset.from_dict({"text": texts, "target": ["yes"] * 20})
    task = Task("echo", (), train=rows, validation=rows, test=rows, score="exact_match")
    method = Replay(method=Sequential(rank=4), per_class=1, strategy="surprise")
    learn(model, [task], method, replace(FEW, epochs=3, learning_rate=0.02))
    (kept,) = Exemplars.of(method.state).rows({"echo": ()})
    assert kept.data["text"][:] == [texts[7]]


def test_replay_keeps_conversations():
    turns = [
        [{"role": "system", "content": "Ü"}, {"role": "user", "content": f"{i}?"}] for i in range(4)
    ]
    rows = Dataset.from_dict({"messages": turns, "target": ["a", "b", "c", "d"]})
    task = Task("chat", (), train=rows, validation=rows, test=rows, score="exact_match")
    kept = Exemplars()
    kept.add(task, [1, 3])
    again = Exemplars.of(json_of(kept))
    (of_task,) = again.rows({"chat": ()})
    assert of_task.data["messages"][:] == [turns[1], turns[3]]
    assert of_task.data["target"][:] == ["b", "d"] and "label" not in of_task.data.column_names
    assert again.of_tasks([]).columns == {}
    again.inputs["chat"][0] = b'[[{"role": "user"}], "b"]'
    with pytest.raises(RunError, match="is damaged"):
        again.rows({"chat": ()})


# -- the loss


def losses_of(backbone, task: Task, training: Training) -> tuple[list[float], adapters.Adapter]:
    losses: list[float] = []
    session = Session(log=lambda event: losses.append(event["loss"]))
    return losses, learn(backbone, [task], Isolated(rank=2), training, session=session)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_same_for_accumulated_batches(kind):
    """Of one step over all examples: the mean over an example's tokens, then over examples."""
    task = free("one", size=8)
    one = replace(FEW, batch_size=8, warmup=0.0, backbone_dropout=False)
    whole, adapter = losses_of(language_model(kind), task, one)
    four = replace(one, batch_size=2, gradient_accumulation=4)
    parts, other = losses_of(language_model(kind), task, four)
    assert len(whole) == len(parts) == 1
    assert parts == pytest.approx(whole, abs=1e-5)
    for name, value in adapter.parameters.items():
        torch.testing.assert_close(other.parameters[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_packed_batches_train_to_the_same_loss(kind, monkeypatch):
    task, usual = free("one", size=16), replace(FEW, backbone_dropout=False)
    padded, adapter = losses_of(language_model(kind), task, usual)
    shapes = []
    whole = TextExamples.packed

    def packed(self, rows, pad, device="cpu"):
        batch = whole(self, rows, pad, device)
        shapes.append(batch.inputs["input_ids"].shape[0])
        return batch

    monkeypatch.setattr(TextExamples, "packed", packed)
    losses, other = losses_of(language_model(kind), task, replace(usual, packing=True))
    assert shapes == [1, 1, 1]  # the first is compared with a padded batch
    assert losses == pytest.approx(padded, abs=1e-5)
    for name, value in adapter.parameters.items():
        torch.testing.assert_close(other.parameters[name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "why"), [("t5", "an encoder and a decoder"), ("bloom", "attend to each other")]
)
def test_what_cannot_be_packed_is_refused(kind, why):
    with pytest.raises(InputError, match=why):
        losses_of(language_model(kind), free("one"), replace(FEW, packing=True))


def test_heads_cannot_be_packed(bert, toy, tmp_path):
    with pytest.raises(InputError, match="`packing` puts several examples .* with heads"):
        run(toy, bert, Isolated(), training=replace(FEW, packing=True), output=tmp_path / "r")
    assert not (tmp_path / "r" / "tasks").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dropout", [True, False])
def test_layers_that_are_computed_again_give_the_same_loss(kind, dropout, monkeypatch):
    task, usual = free("one"), replace(FEW, backbone_dropout=dropout)
    losses, adapter = losses_of(language_model(kind), task, usual)
    passes = []
    backbone = language_model(kind)
    block = (
        backbone.model.encoder.block[1].layer[0]
        if kind == "t5"
        else backbone.model.model.layers[1].mlp
    )
    block.register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    again, other = losses_of(backbone, task, replace(usual, gradient_checkpointing=True))
    assert again == losses and adapters.same(other.parameters, adapter.parameters)
    assert len(passes) == 2 * len(losses)  # each pass is made twice
    assert not any(module.training for module in backbone.modules())
    assert not backbone.model.is_activation_checkpointing


def test_a_block_that_drops_by_itself_is_left_in_peace():
    training = replace(FEW, gradient_checkpointing=True, backbone_dropout=False)
    with pytest.raises(InputError, match="Set `backbone_dropout: true`"):
        losses_of(language_model("bart"), free("one"), training)


def test_an_encoder_computes_again(bert, toy):
    losses, _ = losses_of(bert, toy[0], FEW)
    bert.close(toy[0].name)
    again, _ = losses_of(bert, toy[0], replace(FEW, gradient_checkpointing=True))
    assert again == losses


# -- weights in half precision


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_in_half_precision_beside_a_module_in_float32(kind, dtype, tmp_path):
    task = free("one")
    folder = save(tmp_path / "model", kind)
    whole, half = (Backbone.load(folder, max_new_tokens=16, dtype=t) for t in ("float32", dtype))
    weights = {name: value.clone() for name, value in half.model.named_parameters()}
    assert half.settings["dtype"] == dtype
    assert {value.dtype for value in weights.values()} >= {getattr(torch, dtype)}
    usual = replace(FEW, packing=kind == "llama", backbone_dropout=False)
    losses, _ = losses_of(whole, task, usual)
    again, adapter = losses_of(half, task, usual)
    assert again == pytest.approx(losses, rel=0.05) and again != losses
    trained = adapters.trainable(half.model).values()
    assert {value.dtype for value in trained} == {torch.float32}
    assert {value.dtype for value in adapter.parameters.values()} == {torch.float32}

    adapters.detach(half.model)
    vector = task_vectors([adapter])["one"]
    with folded(half.model, vector):
        for name, value in half.model.named_parameters():
            layer = name.removesuffix(".weight")
            if layer in vector.entries:  # rounded once, from the sum in single precision
                change = vector.dense(layer).float()
                expected = (weights[name].float() + change).to(value.dtype)
                assert torch.equal(value, expected) and change.any()
    assert all(torch.equal(value, weights[name]) for name, value in half.model.named_parameters())


def test_half_precision_is_for_language_models(pico):
    with pytest.raises(BackboneError, match="`dtype` is for language models"):
        Backbone.load(pico("bert"), dtype="bfloat16")


# -- SLAO's start


def test_an_orthogonal_start_is_a_basis_of_the_last_A():
    backbone, tasks = language_model("llama"), [free("one"), free("two")]
    method = Isolated(rank=2, start="orthogonal")
    first = learn(backbone, tasks[:1], method, FEW)
    second = learn(backbone, tasks, method, FEW, earlier=[first])
    for name, start in second.start.items():
        last = first.parameters[name]
        if "lora_B" in name:
            assert torch.equal(start, last) and last.any()
            continue
        torch.testing.assert_close(start @ start.T, torch.eye(2), atol=1e-5, rtol=0)
        # the rows span what the last A's do: projecting them there changes nothing
        basis = torch.linalg.qr(last.T)[0]
        torch.testing.assert_close(start @ basis @ basis.T, start, atol=1e-5, rtol=0)
        assert (start * last).sum(1)[0] > 0
    assert not method.isolates
    with pytest.raises(InputError, match="needs `peft: lora`"):
        Isolated(start="orthogonal", peft="full")


# -- shared weights


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_full_leaves_tied_embeddings_as_they_are(kind, tmp_path):
    """What was trained, what is merged, and what is loaded from the run's folder are one model."""
    backbone, task = language_model(kind), free("one")
    stream = TaskStream("free", (task,))
    learned = run(
        stream, backbone, Isolated(peft="full"), "last", training=FEW, output=tmp_path / "r"
    )
    adapter = learned.load_task("one").adapter
    output = backbone.model.get_output_embeddings()
    changed = {name.rpartition(".")[0] for name in adapter.parameters}
    layers = {
        name.removesuffix(".base_layer")
        for name, layer in backbone.model.named_modules()
        if hasattr(layer, "weight")
    }
    tied = {name for name in layers if backbone.model.get_submodule(name).weight is output.weight}
    assert len(tied) > 1 and not changed & tied and len(changed) == len(layers - tied)

    batch = backbone.encode(task.rows("test")).batch(range(2))
    losses = []
    with torch.no_grad():
        losses.append(backbone.eval().losses(batch))
        adapters.detach(backbone.model)
        with folded(backbone.model, task_vectors([adapter])["one"]):
            losses.append(backbone.losses(batch))
        fresh = language_model(kind)
        adapters.attach(fresh.model, adapter.config)
        adapters.write(fresh.model, adapter.parameters)
        losses.append(fresh.eval().losses(batch))
        assert (backbone.losses(batch) - losses[0]).abs().max() > 0.1
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], atol=1e-5, rtol=0)


def test_a_change_of_a_shared_weight_is_refused():
    with pytest.raises(BackboneError, match="`lm_head` shares its weight with `shared`"):
        Sequential(target_modules=["q", "lm_head"]).attach(language_model("t5"))


def json_of(kept: Exemplars) -> dict:
    """The state as it lies on disk: tensors, and values of JSON."""
    state = kept.state()
    return state | {"kept": json.loads(json.dumps(state["kept"]))}


def test_states_of_older_versions_are_read():
    rows = Dataset.from_dict({"text": ["a", "b"], "text_pair": ["c", "d"], "label": [0, 1]})
    kept = Exemplars()
    kept.add(Task("nli", ("no", "yes"), train=rows, validation=rows, test=rows), [0, 1])
    state = json_of(kept)
    del state["kept"]["columns"]
    state["kept"]["pairs"] = ["nli"]
    (of_task,) = Exemplars.of(state).rows({"nli": ("no", "yes")})
    assert isinstance(of_task, TaskRows) and of_task.data["text_pair"][:] == ["c", "d"]
    state["kept"]["columns"] = {"nli": ["image"]}
    with pytest.raises(RunError, match="damaged"):
        Exemplars.of(state)
