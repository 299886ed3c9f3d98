"""Files that only a language model reads: a damaged or absurd one is refused in a sentence."""

import json
import os

import pico_language
import pytest

from perdure import Backbone, BackboneError


@pytest.fixture
def folder(tmp_path):
    return pico_language.save(tmp_path / "llama", "llama")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eos_token_id": 10**9}, "`eos_token_id` of .* is 1000000000, but the model has tokens"),
        ({"eos_token_id": [1, "x"]}, "eos_token_id"),
        ({"eos_token_id": True}, "eos_token_id"),
        ({"max_new_tokens": "many"}, "missing or damaged, or does not fit"),
    ],
)
def test_absurd_settings_for_generating(values, message, folder):
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(BackboneError, match=message):
        Backbone.load(folder, max_new_tokens=8)


@pytest.mark.parametrize("name", ["generation_config.json", "chat_template.json"])
def test_json_that_is_damaged_or_deep(name, folder):
    (folder / name).write_text('{"eos_token_id": ')
    with pytest.raises(BackboneError, match=f"`.*{name}` is not JSON"):
        Backbone.load(folder)
    (folder / name).write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(BackboneError, match=f"`.*{name}` is not JSON"):
        Backbone.load(folder)


@pytest.mark.parametrize(
    "name",
    ["generation_config.json", "chat_template.jinja", "additional_chat_templates/tool.jinja"],
)
def test_files_that_cannot_be_read_in_bounded_time(name, folder):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(BackboneError, match="pipe or a device|is not a regular file"):
        Backbone.load(folder)
    path.unlink()
    with path.open("wb") as file:
        file.truncate(10**11)
    with pytest.raises(BackboneError, match="has 100000000000 bytes, but no such file needs"):
        Backbone.load(folder)
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(BackboneError, match="Git LFS pointer"):
        Backbone.load(folder)


def test_a_decoder_needs_a_token_to_start_with(tmp_path):
    folder = pico_language.save(tmp_path / "t5", "t5")
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder_start_token_id": 999}))
    with pytest.raises(BackboneError, match="`decoder_start_token_id` of .* is 999"):
        Backbone.load(folder)
