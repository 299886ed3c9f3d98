"""A language model's losses, ranks and answers equal those of transformers,
one example at a time.
"""

import pico_language
import pytest
import torch
from datasets import Dataset
from pico_language import CONFIGS, language_model
from tokenizers import normalizers

from perdure.data.task import TaskRows
from perdure.errors import DataError, InputError
from perdure.models import packing, ranking
from perdure.models.language import LanguageModel
from perdure.models.output_layer import logits_at
from perdure.models.text_examples import prompt_of

ROWS = Dataset.from_dict(
    {
        "text": ["what is this?", "hello world, a longer prompt:", "x"],
        "target": ["good", "very bad", "no"],
    }
)
CHOICES = ["good", "very bad", "no", "not at all", "n"]


def batches(backbone: LanguageModel, rows: Dataset = ROWS):
    examples = backbone.encode([TaskRows("task", rows)])
    ((numbers, batch),) = list(examples.batches())
    return examples, numbers, batch


def own_loss(backbone: LanguageModel, prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    """The loss that transformers computes itself."""
    if backbone.decodes:
        inputs, labels = [prompt], [answer]
    else:
        inputs, labels = [[*prompt, *answer]], [[-100] * len(prompt) + list(answer)]
    output = backbone.model(input_ids=torch.tensor(inputs), labels=torch.tensor(labels))
    return output.loss.item()


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_token_losses_are_those_of_transformers(kind):
    backbone = language_model(kind)
    examples, numbers, batch = batches(backbone)
    losses = backbone.losses(batch).tolist()
    for loss, number in zip(losses, numbers, strict=True):
        tokens = examples.inputs[number]
        assert loss == pytest.approx(own_loss(backbone, tokens.prompt, tokens.answer), abs=1e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_gradients_are_those_of_all_logits(kind):
    backbone = language_model(kind)
    _, _, batch = batches(backbone)
    parameter = next(iter(backbone.model.parameters())).requires_grad_()
    backbone.losses(batch).mean().backward()
    few = parameter.grad.clone()
    parameter.grad = None
    logits = backbone.model(**batch.inputs, use_cache=False).logits
    at = logits[batch.places.rows, batch.places.columns]
    backbone.read(at, batch).losses().mean().backward()
    assert few.any()
    torch.testing.assert_close(few, parameter.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_ranks_are_those_of_whole_sequences(kind):
    backbone = language_model(kind)
    examples, numbers, batch = batches(backbone)
    ranked = backbone.rank(batch, {"task": CHOICES, "other": ["no", "good"]})
    assert backbone._ranking.exact
    for row, number in enumerate(numbers):
        prompt = examples.inputs[number].prompt
        for column, choice in enumerate(CHOICES):
            tail = backbone.prompts.answer(choice, examples.inputs[number].joint)
            log_p = -own_loss(backbone, prompt, tail) * len(tail)
            assert ranked["task"][row, column].item() == pytest.approx(log_p, abs=1e-4)
    assert torch.equal(ranked["other"], ranked["task"][:, [2, 0]])


@torch.no_grad()
def test_an_architecture_that_cannot_pack_is_read_whole():
    backbone = language_model("bloom")
    examples, numbers, batch = batches(backbone)
    ranked = backbone.rank(batch, {"task": CHOICES})["task"]
    assert backbone._ranking.exact is False
    prompt = examples.inputs[numbers[0]].prompt
    tail = backbone.prompts.answer(CHOICES[0], examples.inputs[numbers[0]].joint)
    assert ranked[0, 0].item() == pytest.approx(
        -own_loss(backbone, prompt, tail) * len(tail), abs=1e-4
    )


@pytest.mark.parametrize("kind", ["llama", "t5"])
@torch.no_grad()
def test_many_choices_are_read_in_pieces(kind, monkeypatch):
    backbone = language_model(kind)
    _, _, batch = batches(backbone)
    tails = [backbone.prompts.answer(choice, " ") for choice in CHOICES]
    at_once = ranking.Ranking().scores(backbone.model, prompt_of(batch), tails)
    monkeypatch.setattr(ranking, "MOST_PLACES", 20)
    pieces = list(ranking._pieces(tails, len(batch)))
    assert len(pieces) > 2
    assert [tail for piece in pieces for tail in piece] == tails
    in_pieces = ranking.Ranking().scores(backbone.model, prompt_of(batch), tails)
    torch.testing.assert_close(at_once, in_pieces, atol=1e-4, rtol=0)


@torch.no_grad()
def test_normalized_ranks_are_per_token():
    backbone = language_model("llama")
    _, _, batch = batches(backbone)
    plain = backbone.rank(batch, {"task": ["no", "very bad"]})["task"]
    backbone.normalized = True
    # " no" and its end are 4 tokens of one byte, " very bad" and its end 10
    expected = plain / torch.tensor([4.0, 10.0])
    torch.testing.assert_close(backbone.rank(batch, {"task": ["no", "very bad"]})["task"], expected)


@pytest.mark.parametrize("kind", CONFIGS)
@torch.no_grad()
def test_batches_generate_what_single_prompts_do(kind):
    backbone = language_model(kind)
    examples, numbers, batch = batches(backbone)
    alone = [backbone.generate(examples.batch([number]))[0] for number in numbers]
    assert backbone.generate(batch) == alone
    assert any(alone)


@torch.no_grad()
def test_generating_sets_the_models_own_settings_aside():
    backbone = language_model("llama")
    _, _, batch = batches(backbone)
    before = backbone.generate(batch)
    own = backbone.model.generation_config
    own.do_sample, own.temperature, own.repetition_penalty = True, 5.0, 3.0
    assert backbone.generate(batch) == before
    assert backbone.model.generation_config is own


@pytest.mark.parametrize("kind", ["llama", "t5"])
@torch.no_grad()
def test_features_do_not_see_the_answer(kind):
    backbone = language_model(kind)
    _, _, batch = batches(backbone)
    _, _, other = batches(backbone, ROWS.remove_columns("target"))
    assert len(other.targets) == 0
    torch.testing.assert_close(
        backbone.features(batch), backbone.features(other), atol=1e-6, rtol=0
    )
    assert backbone.features(batch).shape == (3, 32)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "gpt2"])
def test_packed_examples_do_not_see_each_other(kind, monkeypatch):
    backbone = language_model(kind)
    examples, numbers, batch = batches(backbone)
    parameter = next(iter(backbone.model.parameters())).requires_grad_()
    gradients = []
    for line in (256, 50):
        monkeypatch.setattr(packing, "LINE", line)
        packed = examples.packed(numbers, pad=0)
        assert len(packed.inputs["input_ids"]) == (1 if line == 256 else 2)
        torch.testing.assert_close(
            backbone.losses(packed), backbone.losses(batch), atol=1e-5, rtol=0
        )
        assert torch.equal(packed.targets, batch.targets)
        gradients += [
            torch.autograd.grad(backbone.losses(b).mean(), parameter) for b in (packed, batch)
        ]
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], atol=1e-4, rtol=1e-3)


def test_encoder_and_decoder_never_have_the_same_width():
    backbone = language_model("t5")
    rows = Dataset.from_dict({"text": ["abcd"], "target": ["abcd"]})
    _, _, batch = batches(backbone, rows)
    assert batch.inputs["input_ids"].shape[1] != batch.inputs["decoder_input_ids"].shape[1]


def test_places_are_the_tokens_of_the_answers():
    backbone = language_model("llama")
    _, numbers, batch = batches(backbone)
    assert numbers == [2, 0, 1]
    # the prompt of the first is "<s>x", so the four tokens of its answer are due from column 1 on
    assert batch.places.columns[:4].tolist() == [1, 2, 3, 4]
    assert backbone.processor.decode(batch.targets[:4]) == " no</s>"
    assert batch.places.rows.tolist() == [0] * 4 + [1] * 6 + [2] * 10


@torch.no_grad()
def test_no_logits_are_computed_elsewhere():
    backbone = language_model("llama")
    _, _, batch = batches(backbone)
    with logits_at(backbone.model, torch.tensor([0]), torch.tensor([1])):
        logits = backbone.model(**batch.inputs, use_cache=False).logits
    assert logits.shape == (1, 1, 259)
    assert not backbone.model.get_output_embeddings()._forward_pre_hooks


def test_images_are_refused():
    backbone = language_model("llama")
    with pytest.raises(InputError, match="language model, but the examples are images"):
        backbone.prepare([TaskRows("task", Dataset.from_dict({"image": [b""], "label": [0]}))])


# -- prompts and answers

TEMPLATE = (
    "{% for turn in messages %}<{{ turn['role'] }}>{{ turn['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def prompts(template: str | None = None, **settings):
    tokenizer = pico_language.tokenizer()
    tokenizer.chat_template = template
    return language_model("llama", tokenizer=tokenizer, chat=bool(template), **settings).prompts


def decoded(made, tokens) -> str:
    return made.tokenizer.decode(tokens)


def test_prompt_and_answer_are_apart_and_end():
    made = prompts()
    tokens = made.tokens("Is it good?", "yes", "Row 1")
    assert decoded(made, tokens.prompt) == "<s>Is it good?"
    assert decoded(made, tokens.answer) == " yes</s>"
    assert made.text(tokens.answer) == "yes"
    after_space = made.tokens("Is it good?\n", "yes", "Row 1")
    assert decoded(made, after_space.answer) == "yes</s>"


def test_a_chat_template_says_where_an_answer_ends():
    made = prompts(TEMPLATE, system_message="Be brief.")
    tokens = made.tokens("Is it good?", "yes", "Row 1")
    asked = "<system>Be brief.</s>\n<user>Is it good?</s>\n<assistant>"
    assert decoded(made, tokens.prompt) == asked
    assert decoded(made, tokens.answer) == "yes</s>"  # not the line break behind it
    turns = [
        {"role": "system", "content": "Be long."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Well?"},
    ]
    tokens = made.tokens(turns, "yes", "Row 1")
    whole = "<system>Be long.</s>\n<user>Hi</s>\n<assistant>Hello</s>\n<user>Well?</s>\n<assistant>"
    assert decoded(made, tokens.prompt) == whole


def test_a_template_that_drops_the_question_is_refused():
    broken = "{% if add_generation_prompt %}ask{% else %}{{ messages[-1]['content'] }}{% endif %}"
    with pytest.raises(InputError, match="does not begin with the conversation that asks for it"):
        prompts(broken).tokens("Is it good?", "yes", "Row 1")


def test_a_template_that_raises_is_a_sentence():
    raises = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(
        DataError, match="Row 3: the chat template of `llama`.*roles must alternate"
    ):
        prompts(raises).tokens("Is it good?", "yes", "Row 3")


def test_a_conversation_needs_a_template():
    turns = [{"role": "user", "content": "Hi"}]
    with pytest.raises(InputError, match="Row 3: .*`llama` has no chat template"):
        prompts().tokens(turns, "yes", "Row 3")


def test_an_answer_is_never_cut():
    made = prompts(max_new_tokens=5)
    assert len(made.tokens("a", "yes", "Row 1").answer) == 5
    with pytest.raises(
        DataError, match="Row 2: the answer has 6 tokens with its end, but `max_new_tokens` is 5"
    ):
        made.tokens("a", "yes!", "Row 2")


@pytest.mark.parametrize("answer", ["", "  "])
def test_an_answer_without_tokens_is_refused(answer):
    with pytest.raises(DataError, match="Row 2: the answer .* has no token"):
        prompts().tokens("a", answer, "Row 2")


def test_answers_that_are_the_same_to_the_model_are_refused():
    prompts().check_choices(["no", "nothing", "No"], "mood")
    with pytest.raises(
        DataError, match="Task `mood` has the answers 'yes' and ' yes', which are the same to `ll"
    ):
        prompts().check_choices(["no", "yes", " yes"], "mood")
    with pytest.raises(DataError, match="Task `mood`: the answer '  ' has no token"):
        prompts().check_choices(["no", "  "], "mood")
    made = prompts()
    made.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(DataError, match="the answers 'no' and 'No', which are the same"):
        made.check_choices(["no", "nothing", "No"], "mood")


@pytest.mark.parametrize(
    ("truncate", "kept"), [("left", "efgh"), ("right", "<s>abc"), ("middle", "<s>agh")]
)
def test_a_long_prompt_is_cut_at_a_side(truncate, kept):
    made = prompts(max_length=4, truncate=truncate)
    tokens = made.tokens("abcdefgh", "yes", "Row 1")
    assert decoded(made, tokens.prompt) == kept
    assert tokens.cut
    assert not made.tokens("abc", "yes", "Row 1").cut


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(DataError, match="Row 1: .*no token of the prompt"):
        prompts().tokens("", "yes", "Row 1")


def test_rounding_to_half_precision_is_no_disagreement():
    """The losses of SmolLM2 in bfloat16: packed as they should be, and with an ignored mask."""
    model = language_model("llama").model.to(torch.bfloat16)
    padded = torch.tensor([4.061, 5.928, 4.632, 2.261])
    rounded = torch.tensor([0.348, -0.056, -0.093, 0.0])
    assert ranking.agree(model, padded + rounded, padded)
    padded = torch.tensor([4.033, 5.97, 4.553, 2.248, 2.152, 3.949, 3.551, 2.438])
    leaking = torch.tensor([1.196, 0.045, 0.139, 0.451, 0.008, -0.016, 1.641, -0.036])
    assert not ranking.agree(model, padded + leaking, padded)
    assert not ranking.agree(language_model("llama").model, padded + 0.002, padded)
