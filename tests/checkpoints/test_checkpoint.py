"""Files from elsewhere: a damaged, false or malicious one is an error of ours that names it,
and nothing is written.
"""

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft_folders import adapter, base, values
from safetensors.torch import load_file, save_file

from perdure import CheckpointError, PerdureError, merge_checkpoint
from perdure.checkpoints.base import Checkpoint
from perdure.storage.tensors import TensorFile, header, is_finite, new

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("made")
    folder = base("llama", place)
    sharded = base("llama", place, name="sharded", max_shard_size="8KB")
    return folder, sharded, adapter(folder, place / "one", seed=1)


@pytest.fixture
def single(made, tmp_path):
    return Path(shutil.copytree(made[0], tmp_path / "llama")), made[2]


@pytest.fixture
def sharded(made, tmp_path):
    return Path(shutil.copytree(made[1], tmp_path / "sharded")), made[2]


def fails(
    folder: Path, place: Path, *parts: str, kind: type[PerdureError] = CheckpointError
) -> None:
    beside = sorted(path.name for path in folder.parent.iterdir())
    with pytest.raises(kind) as error:
        merge_checkpoint(folder, [place], "sum", folder.parent / "out", any_base=True)
    assert all(part in str(error.value) for part in parts), error.value
    assert sorted(path.name for path in folder.parent.iterdir()) == beside


def parts_of(path: Path) -> tuple[dict, bytes]:
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def rewrite(path: Path, table: object, data: bytes) -> None:
    text = json.dumps(table).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


Q = "model.layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[Q].update(dtype="F99"), Q),
        (lambda t: t[Q].update(dtype=["F32"]), Q),
        (lambda t: t[Q].update(shape=[16, 15]), "cannot have 1024 bytes"),
        (lambda t: t[Q].update(shape=[-16, -16]), Q),
        (lambda t: t[Q].update(shape=[2**62, 2**62]), Q),
        (lambda t: t[Q].update(shape=[16.0, 16]), Q),
        (lambda t: t[Q].update(shape=None), Q),
        (lambda t: t[Q].update(data_offsets=[0]), Q),
        (lambda t: t[Q].update(data_offsets=[t[Q]["data_offsets"][1], t[Q]["data_offsets"][0]]), Q),
        (
            lambda t: t[Q].update(data_offsets=[n + 4 for n in t[Q]["data_offsets"]]),
            "begins at byte",
        ),
        (lambda t: t.pop(Q), "begins at byte"),
        (lambda t: t.update({Q: 7}), Q),
        (lambda t: t.update(extra=t[Q]), "begins at byte"),
        (lambda t: t.update(__metadata__={"format": 1}), "__metadata__"),
        (lambda t: t.update(__metadata__=[]), "__metadata__"),
    ],
)
def test_false_headers(change, message, single):
    table, data = parts_of(single[0] / MODEL)
    change(table)
    rewrite(single[0] / MODEL, table, data)
    fails(*single, str(single[0] / MODEL), message)


@pytest.mark.parametrize("where", [0, 7, 8, 200, 0.3, 0.9, -1])
def test_truncated_files(where, single, made):
    content = (single[0] / MODEL).read_bytes()
    size = int(len(content) * where) if isinstance(where, float) else where
    (single[0] / MODEL).write_bytes(content[:size])
    fails(*single, str(single[0] / MODEL))
    place = Path(shutil.copytree(single[1], single[0].parent / "cut"))
    content = (place / "adapter_model.safetensors").read_bytes()
    (place / "adapter_model.safetensors").write_bytes(
        content[:size] if size < len(content) else content[:-3]
    )
    (single[0] / MODEL).write_bytes((made[0] / MODEL).read_bytes())
    fails(single[0], place, str(place / "adapter_model.safetensors"))


def test_sizes_that_cannot_be(single):
    content = (single[0] / MODEL).read_bytes()
    for size in (2**64 - 1, 2**40, 1, 0, len(content) - 7):
        (single[0] / MODEL).write_bytes(struct.pack("<Q", size) + content[8:])
        fails(*single, str(single[0] / MODEL))
    (single[0] / MODEL).write_bytes(content + b"more")
    fails(*single, str(single[0] / MODEL), "something was added")
    with (single[0] / MODEL).open("wb") as file:  # a header of 200 MB: refused before it is read
        file.truncate(300_000_000)
        file.write(struct.pack("<Q", 200_000_000))
    fails(*single, str(single[0] / MODEL), "at most 100000000")
    entry = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    text = b"{" + entry + b"," + entry + b"}"
    (single[0] / MODEL).write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    fails(*single, str(single[0] / MODEL), "a key appears twice")


@pytest.mark.parametrize(
    "name", ["../llama/model.safetensors", "/etc/passwd", "a/b.safetensors", "..", "x.bin", "é"]
)
def test_an_index_that_leads_elsewhere(name, sharded):
    index = json.loads((sharded[0] / INDEX).read_text())
    index["weight_map"][Q] = name
    (sharded[0] / INDEX).write_text(json.dumps(index))
    fails(*sharded, INDEX, repr(name))


def test_index_and_shards_that_do_not_fit(sharded):
    folder, place = sharded
    good = (folder / INDEX).read_text()
    for text, message in [
        ("", "is not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "`weight_map`"),
        ('{"weight_map": {}}', "`weight_map`"),
        ('{"weight_map": {"a": 1}}', "`weight_map`"),
        ('{"weight_map": {"a": "model-00009-of-00009.safetensors"}}', "is missing"),
        (good.replace(Q, "lost.weight"), "lists `lost.weight`"),
    ]:
        (folder / INDEX).write_text(text)
        fails(folder, place, message)
    (folder / INDEX).write_text(good)
    names = sorted(set(json.loads(good)["weight_map"].values()))
    (folder / names[0]).write_bytes((folder / names[1]).read_bytes())
    fails(folder, place, "is in two files")


def test_links(sharded, made, tmp_path):
    folder, place = sharded
    outside = tmp_path / "outside"
    outside.mkdir()
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    (folder / names[0]).rename(outside / "shard")
    (folder / names[0]).symlink_to(outside / "shard")
    fails(folder, place, names[0], "points outside its folder")
    (outside / "shard").rename(folder / "kept.safetensors.txt")
    (folder / names[0]).unlink()
    (folder / names[0]).symlink_to("kept.safetensors.txt")
    (folder / "vocab.txt").symlink_to("/etc/passwd")
    fails(folder, place, "vocab.txt", "points outside its folder")
    # the hub's cache: snapshots/<revision>/file is a link into blobs/
    cache = tmp_path / "models--org--llama"
    snapshot = cache / "snapshots" / "abc"
    (cache / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted(made[0].iterdir())):
        (cache / "blobs" / str(i)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{i}")
    assert "llama" in Checkpoint.open(snapshot).names
    assert merge_checkpoint(snapshot, [place], "sum", tmp_path / "out").written
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_folders_without_weights(single):
    folder, place = single
    (folder / MODEL).rename(folder / "pytorch_model.bin")
    fails(folder, place, "pytorch_model.bin", "unpickling can run arbitrary code")
    (folder / "pytorch_model.bin").unlink()
    fails(folder, place, "has no `model.safetensors`")
    os.mkfifo(folder / MODEL)
    fails(folder, place, MODEL, "is not a file")
    (folder / "config.json").unlink()
    fails(folder, place, "config.json")


@pytest.mark.parametrize("name", [MODEL, "config.json", "tokenizer.json"])
def test_a_pointer_of_git_lfs(name, single):
    (single[0] / name).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"
    )
    fails(*single, f"{name}` is a Git LFS pointer", "git lfs pull")


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 3_000_000,
        b'{"a":[' + b"[]," * 1_000_000 + b"1]}",
        b'{"a":[' + b"1," * 2_000_000 + b"1]}",
    ],
)
def test_json_of_very_many_values_is_refused_before_it_is_read(text, single):
    (single[0] / "config.json").write_bytes(text)
    fails(*single, "config.json` is not JSON", "more than 1,000,000 values")
    shutil.copy(single[1] / "adapter_config.json", single[0] / "config.json")
    (single[0] / MODEL).write_bytes(struct.pack("<Q", len(text)) + text)
    fails(*single, "The header of", "more than 1,000,000 values")


def test_a_file_of_very_many_empty_tensors(single):
    entry = '"t{}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    text = ("{" + ",".join(entry.format(i) for i in range(400_000)) + "}").encode()
    (single[0] / MODEL).write_bytes(struct.pack("<Q", len(text)) + text)
    fails(*single, "The header of", "more than 1,000,000 values")


def test_code_of_the_base_is_left_behind(single, tmp_path):
    folder, place = single
    code = {"auto_map": {"AutoModel": "modeling_x.X"}, "custom_pipelines": {"x": {"impl": "x.X"}}}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | code))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["o/x--t.T", None]}})
    )
    (folder / "modules.json").write_text("[]")
    (folder / "modeling_x.py").write_text("raise SystemExit")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "pool.py").write_text("raise SystemExit")
    merged = merge_checkpoint(folder, [place], "sum", tmp_path / "out")
    out = tmp_path / "out"
    assert not list(out.rglob("*.py"))
    assert "auto_map" not in "".join(path.read_text() for path in out.glob("*.json"))
    assert json.loads((out / "config.json").read_text()) == config
    assert (out / "modules.json").read_text() == "[]"
    assert (
        "1_Pooling/pool.py, modeling_x.py" in str(merged)
        and "was not copied" in (out / "README.md").read_text()
    )
    assert merge_checkpoint(folder, [place], "sum", form="adapter", dry_run=True).notes == ()


def test_who_may_read_it_is_for_the_umask_to_say(single, tmp_path):
    folder, place = single
    (folder / "tokenizer.json").write_text("{}")
    for path in folder.iterdir():
        path.chmod(0o600)
    before = os.umask(0o027)
    try:
        merge_checkpoint(folder, [place], "sum", tmp_path / "model")
        merge_checkpoint(folder, [place], "sum", tmp_path / "adapter", form="adapter")
    finally:
        os.umask(before)
    for out in (tmp_path / "model", tmp_path / "adapter"):
        assert out.stat().st_mode & 0o777 == 0o750
        assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o640}


def test_what_belongs_to_the_model_is_copied(single, tmp_path):
    folder, place = single
    kept = {
        "tokenizer.json": "{}",
        "chat_template.jinja": "x",
        "LICENSE": "x",
        "1_Pooling/config.json": "{}",
    }
    left = [
        "pytorch_model.bin",
        "model.onnx",
        ".gitattributes",
        "onnx/model.onnx",
        "adapter_config.json",
        "README.md",
    ]
    for name, text in (kept | dict.fromkeys(left, "{}")).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    merge_checkpoint(folder, [place], "sum", tmp_path / "out")
    found = {
        str(path.relative_to(tmp_path / "out"))
        for path in (tmp_path / "out").rglob("*")
        if path.is_file()
    }
    assert found == {*kept, "config.json", "generation_config.json", MODEL, "README.md"}
    assert "perdure" in (tmp_path / "out" / "README.md").read_text()


def test_a_file_is_read_by_rows_and_written_as_safetensors_reads_it(tmp_path):
    tensors = {
        "a": torch.randn(5, 3).bfloat16(),
        "b": torch.arange(6),
        "c": torch.tensor(2.5),
        "d": torch.ones(0, 4),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    file = TensorFile(tmp_path / "x.safetensors")
    assert all(torch.equal(file.read(name), value) for name, value in tensors.items())
    assert torch.equal(file.read("a", 1, 4), tensors["a"][1:4]) and file.metadata == {
        "format": "pt"
    }
    start, places = header({name: new(value) for name, value in tensors.items()}, {"format": "pt"})
    body = b"".join(
        value.reshape(-1).view(torch.uint8).numpy().tobytes() for value in tensors.values()
    )
    (tmp_path / "y.safetensors").write_bytes(start + body)
    assert all(
        torch.equal(value, tensors[name])
        for name, value in load_file(tmp_path / "y.safetensors").items()
    )
    assert places["a"].start == len(start) and places["d"].stop == len(start) + len(body)


def test_is_finite_also_where_the_sum_is_not():
    assert is_finite(torch.full((4,), 3e38)) and is_finite(
        torch.full((4,), 65504.0, dtype=torch.float16)
    )
    assert not is_finite(torch.tensor([float("inf"), -float("inf")])) and not is_finite(
        torch.tensor([float("nan")])
    )


# -- fuzz: only errors of ours

FUZZ = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def only_ours(call) -> None:
    try:
        call()
    except PerdureError as error:
        assert str(error)


@FUZZ
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 40),
)
def test_fuzz_of_headers(flips, cut, made, tmp_path):
    content = bytearray((made[2] / "adapter_model.safetensors").read_bytes())
    size = struct.unpack("<Q", content[:8])[0]
    for place, value in flips:
        content[place % (8 + size)] = value
    (tmp_path / "f.safetensors").write_bytes(content[: len(content) - (cut if cut > 30 else 0)])

    def read():
        file = TensorFile(tmp_path / "f.safetensors")
        assert all(file.read(name).shape == stored.shape for name, stored in file.tensors.items())

    only_ours(read)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = [
    "peft_type",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "init_lora_weights",
    "bias",
]
KEYS += [
    "base_model_name_or_path",
    "use_dora",
    "fan_in_fan_out",
    "target_modules",
    "use_rslora",
    "anything",
    "task_type",
]


@FUZZ
@pytest.mark.filterwarnings("ignore:.*is an unknown setting:perdure.PerdureWarning")
@given(changes=st.dictionaries(st.sampled_from(KEYS), json_values, max_size=3))
def test_fuzz_of_adapter_configurations(changes, made, tmp_path):
    config = json.loads((made[2] / "adapter_config.json").read_text()) | changes
    place = tmp_path / "fuzzed"
    shutil.copytree(made[2], place, dirs_exist_ok=True)
    (place / "adapter_config.json").write_text(json.dumps(config))
    only_ours(lambda: merge_checkpoint(made[0], [place], "sum", dry_run=True))


@FUZZ
@given(
    text=st.binary(max_size=60)
    | json_values.map(lambda value: json.dumps({"weight_map": value}).encode())
)
def test_fuzz_of_indices(text, made, tmp_path):
    place = tmp_path / "fuzzed"
    shutil.copytree(made[1], place, dirs_exist_ok=True)
    (place / INDEX).write_bytes(text)
    with pytest.raises(PerdureError):
        Checkpoint.open(place)


@FUZZ
@given(
    changes=st.dictionaries(
        st.sampled_from(["architectures", "text_config", "vocab_size", "model_type", "id2label"]),
        json_values,
    )
)
def test_fuzz_of_the_base_configuration(changes, made, tmp_path):
    place = tmp_path / "fuzzed"
    shutil.copytree(made[0], place, dirs_exist_ok=True)
    config = json.loads((made[0] / "config.json").read_text()) | changes
    (place / "config.json").write_text(json.dumps(config))
    only_ours(lambda: merge_checkpoint(place, [made[2]], "sum", dry_run=True, any_base=True))
    assert values(place)
