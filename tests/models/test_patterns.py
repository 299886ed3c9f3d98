"""A regular expression matches as `re` says, or is refused in bounded time."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import CheckpointError, InputError
from perdure.models import adapter_targets, patterns
from perdure.models.patterns import matching

LAYERS = [
    f"model.layers.{i}.{kind}"
    for i in range(12)
    for kind in ("self_attn.q_proj", "mlp.up_proj", "norm")
]
USUAL = [
    r".*\.(q_proj|up_proj)",
    r".*self_attn.*(?:q|k|v)_proj",
    r"model\.layers\.(0|1)\..*|.*norm",
    r"(?:.*?(?:attn|mlp).*?(?:q_proj|up_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.norm)",
    r"(?!.*norm).*",
    r"(?<!x)model(\.\w+)+",
    "norm",
    "",
]
# Each keeps `re` busy for longer than anybody waits; the last ones also keep `regex` busy.
SLOW = [
    r"(\w+\.?)+\s",
    r"(.*)*\.(.*)*\s",
    r"(a|\w|\w\w)+\s",
    r"(?:\w{1,100}\.?){1,1000}\s",
    r"(?:(?:\w\w?\.?){1,90}){1,90}\s",
]


@pytest.mark.parametrize("pattern", USUAL)
def test_it_matches_as_re_does(pattern):
    assert matching(pattern, LAYERS, "it") == [
        name for name in LAYERS if re.fullmatch(pattern, name)
    ]


@pytest.mark.parametrize("pattern", SLOW)
def test_a_slow_pattern_ends_in_time(pattern, monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.3)
    began = time.monotonic()
    try:
        assert matching(pattern, LAYERS * 100, "`target_modules`") == []
    except InputError as error:
        assert "`target_modules`: matching the regular expression" in str(error)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "pattern", ["(", "a{2}{3}", "(?R)?a", "(" * 5000, "a{99999999999}", "x" * 20_000, "[z-a]"]
)
def test_what_is_none_is_refused(pattern):
    with pytest.raises(InputError, match="`target_modules`.*regular expression") as refused:
        matching(pattern, LAYERS, "`target_modules`")
    assert len(str(refused.value)) < 500


def test_time_is_shared_by_all_names(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    began = time.monotonic()
    with pytest.raises(InputError, match="more than 0.2 seconds"):
        matching(SLOW[-1], LAYERS * 1000, "it")
    assert time.monotonic() - began < 2


def test_target_modules_of_a_recipe_are_matched_so(pico, monkeypatch):
    import transformers

    model = transformers.AutoModel.from_pretrained(pico("bert"))
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    for pattern in (SLOW[-1], "("):
        with pytest.raises(InputError, match="`target_modules`"):
            adapter_targets.configure(
                model, "lora", rank=2, alpha=2, dropout=0.0, target_modules=pattern
            )


def test_the_patterns_of_a_file_share_their_time(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    began = time.monotonic()
    of_a_file = patterns.Patterns(CheckpointError)
    with pytest.raises(CheckpointError, match=r"^`rank_pattern`: .* more than 0.2 seconds"):
        for number in range(1000):
            of_a_file.match(rf"(a|a)*b|{number}", "a" * 16, "`rank_pattern`")
            of_a_file.match(rf"(a|a)*$|{number}", "a" * 16 + "!", "`rank_pattern`")
    assert time.monotonic() - began < 2


def test_to_compile_patterns_takes_of_the_same_time(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    began = time.monotonic()
    of_a_file = patterns.Patterns(CheckpointError)
    with pytest.raises(CheckpointError, match="more than 0.2 seconds"):
        for number in range(20_000):
            of_a_file.match(rf"(.*\.)?(layer{number})$", "layer", "`rank_pattern`")
    assert time.monotonic() - began < 2


@settings(max_examples=100, deadline=None)
@given(st.text("ab.*+?|()[]01^$\\d", max_size=8), st.text("ab.01", max_size=6))
def test_any_short_pattern_is_matched_as_usual(pattern, name):
    try:
        expected = re.fullmatch(pattern, name), re.match(pattern, name)
    except (re.error, FutureWarning):
        return
    of_a_file = patterns.Patterns()
    assert bool(of_a_file.fullmatch(pattern, name, "it")) == bool(expected[0])
    assert bool(of_a_file.match(pattern, name, "it")) == bool(expected[1])
