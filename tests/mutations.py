"""Damage and malice for the files of a run folder: a random change of one file,
drawn from a seed.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml

from perdure.learning.snapshot import Snapshot

DEEP = "PERDURE_DEEP"  # a text that becomes 50,000 nested lists
HOSTILE: list[Any] = [
    *(0, -1, 1, 2, 3, 7, 16, 17, 2**31, 2**63, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308),
    *(
        float("nan"),
        float("inf"),
        -float("inf"),
        True,
        False,
        None,
        [],
        {},
        [[]],
        [None],
        {"": {}},
        [1, "a"],
    ),
    *(
        "",
        " ",
        "x",
        "fruit",
        "colour",
        "..",
        "../../../etc/passwd",
        "/etc/passwd",
        "/dev/zero",
        "~",
        "a/b",
        "a\0b",
    ),
    *(
        "(a+)+$",
        r"(\w+\.?)+!",
        r".*(.*)*(.+)+\d!",
        "(",
        "[",
        "\ud800",
        "\n",
        "name,with,commas",
        '"',
        "\u202e",
        "é" * 9,
    ),
    *(
        "a" * 10_000,
        "nan",
        "1e999",
        "search",
        "1/n",
        "9" * 5000,
        ["query", "(x+x+)+y"],
        ["a"] * 1000,
        {"scale": {}},
    ),
    *(
        {"a": float("nan")},
        [10**18],
        [0, 10**15],
        [10**9, 10**9],
        [-1, 4],
        "I64",
        "F64",
        "BOOL",
        "F4",
        "U16",
        "C64",
    ),
    *(
        "isolated",
        "inflora",
        "joint",
        "oracle",
        "sum",
        "slerp",
        "smile",
        "regmean",
        "delta",
        "factor",
        "start",
        DEEP,
    ),
]
YAML = [
    "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
    "d: [*c,*c,*c,*c]\n",
    "!!python/object/apply:os.system ['exit 1']",
    "x: !!python/name:os.system",
    "a: &a\n  b: *a\n",
    "<<: {a: 1}\n",
    "? {a: 1}\n: 2\n",
    "a: 2020-13-45\n",
    "a: 0x" + "f" * 5000 + "\n",
    "a: " + ":".join(["59"] * 3000) + "\n",
    "a: !!binary '%%%'\n",
    "a: !!timestamp 'x'\n",
    "- a\n",
    "%YAML 9.9\n---\na: 1\n",
    "a: 1\n---\nb: 2\n",
    "{" * 3000,
    "- " * 20_000,
    "[" * 200_000,
    "[" * 900 + "]" * 900,
    "a: " + "[" * 5000 + "]" * 5000,
    "x" * 1_000_001,
]


def mutate(folder: Path, random: Random) -> str:
    """Change one file (or name) of a run folder; return what was done.

    A task's manifest is mostly made to fit.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    kinds = sorted({path.name for path in files})
    kind = random.choice(kinds)  # each kind of file as often as the others
    path = random.choice([path for path in files if path.name == kind])
    own = [in_snapshot] * 2 if path.name == "unfinished.safetensors" else []
    change = random.choice((CHANGES.get(path.suffix, []) + own) * 3 + [in_bytes, None])
    said = change(path, random) if change else in_place(path, random, folder)
    place = next((parent for parent in path.parents if parent.parent.name == "tasks"), None)
    if place and path.name != "manifest.json" and random.random() < 0.93:
        said += fit_manifest(place)
    return f"{path.relative_to(folder)}: {said}"


def fit_manifest(place: Path) -> str:
    """Let the manifest of a task state what its files are now."""
    manifest = {}
    for path in sorted(
        path for path in place.rglob("*") if path.name != "manifest.json" and path.is_file()
    ):
        content = path.read_bytes() if path.stat().st_size < 10_000_000 else b""
        sha256 = hashlib.sha256(content).hexdigest()
        manifest[str(path.relative_to(place))] = {"size": len(content), "sha256": sha256}
    (place / "manifest.json").write_text(json.dumps(manifest))
    return ", and the manifest fits"


# -- in the bytes


def in_bytes(path: Path, random: Random) -> str:
    """A few bytes flipped, cut, repeated, or put in."""
    content = bytearray(path.read_bytes())
    done = []
    for _ in range(random.choice([1, 1, 1, 2, 5, 20])):
        place = random.randrange(len(content) + 1)
        if path.suffix == ".safetensors" and random.random() < 0.6:
            place = min(place, random.randrange(300))
        length = random.choice([1, 1, 2, 8, random.randrange(1, 200)])
        kind = random.choice(["flip", "cut", "repeat", "insert", "end"])
        done.append(f"{kind} {place} {length}")
        if kind == "flip" and content:
            content[min(place, len(content) - 1)] ^= 1 << random.randrange(8)
        elif kind == "cut":
            del content[place : place + length]
        elif kind == "repeat":
            content[place:place] = content[place : place + length] * random.choice([1, 2, 100])
        elif kind == "insert":
            content[place:place] = random.choice(
                [random.randbytes(length), b"\0" * length, b"9" * length, b'"']
            )
        elif random.random() < 0.1:
            del content[place:]
    path.write_bytes(bytes(content))
    return "; ".join(done)


def in_place(path: Path, random: Random, folder: Path) -> str:
    """Something else where the file was, or where its folder was:
    beside the run is the folder `outside`.
    """
    outside = folder.parent / "outside"
    kind = random.choice(list(PLACES))
    if kind == "in a linked folder" and path.parent != folder:
        shutil.rmtree(outside / "copy", ignore_errors=True)
        shutil.move(path.parent, outside / "copy")
        path.parent.symlink_to(outside / "copy")
    elif kind in ("empty", "sparse"):
        PLACES[kind](path, outside)
    else:
        path.unlink()
        PLACES[kind](path, outside)
    return kind


PLACES: dict[str, Callable[[Path, Path], Any]] = {
    "missing": lambda path, outside: None,
    "empty": lambda path, outside: path.write_bytes(b""),
    "a folder": lambda path, outside: path.mkdir(),
    "a pipe": lambda path, outside: os.mkfifo(path),
    "sparse": lambda path, outside: os.truncate(path, 3_000_000_000),
    "a link to a file outside": lambda path, outside: path.symlink_to(outside / "file"),
    "a link to a folder outside": lambda path, outside: path.symlink_to(outside),
    "a link to /dev/zero": lambda path, outside: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path, outside: path.symlink_to(path),
    "a link to nothing": lambda path, outside: path.symlink_to(outside / "nothing"),
    "in a linked folder": lambda path, outside: None,
}


# -- in the values


def in_value(value: Any, random: Random) -> tuple[Any, str]:
    """A value inside lists and mappings taken out, put in, renamed,
    or swapped with a hostile one.
    """
    places: list[tuple[Any, Any]] = []

    def walk(inner: Any) -> None:
        for key in (
            list(inner)
            if isinstance(inner, dict)
            else range(len(inner))
            if isinstance(inner, list)
            else ()
        ):
            places.append((inner, key))
            walk(inner[key])

    walk(value)
    if not places or random.random() < 0.01:
        new = random.choice(HOSTILE)
        return new, f"all is {str(new)[:40]!r}"
    inner, key = random.choice(places)
    kind = random.choice(["swap"] * 6 + ["out", "in", "rename", "exchange", "near"])
    new = random.choice(HOSTILE)
    if kind == "out":
        del inner[key]
    elif kind == "in" and isinstance(inner, dict):
        inner[
            random.choice(
                ["", "x", "../x", "lora_A", "a.b", "__class__", "scale", "fruit", "\ud800"]
            )
        ] = new
    elif kind == "in":
        inner.insert(key, new)
    elif kind == "rename" and isinstance(inner, dict):
        inner[f"{key}{random.choice(['x', '.', '/', ' '])}"] = inner.pop(key)
    elif kind == "exchange":
        other, place = random.choice(places)
        inner[key] = (
            json.loads(json.dumps(other[place]))
            if place in other or isinstance(other, list)
            else new
        )
    elif kind == "near" and isinstance(inner[key], int | float):
        inner[key] = random.choice(
            [inner[key] + 1, inner[key] - 1, -inner[key], 2 * inner[key], 1000 * inner[key]]
        )
    else:
        inner[key] = new
    return value, f"{kind} {key!r} {str(new)[:40]!r}"


def dumped(value: Any) -> str:
    return json.dumps(value).replace(f'"{DEEP}"', "[" * 50_000 + "]" * 50_000)


def in_json(path: Path, random: Random) -> str:
    value, said = in_value(json.loads(path.read_text()), random)
    path.write_text(dumped(value))
    return said


def in_yaml(path: Path, random: Random) -> str:
    """A value of the recipe; or another document in its place, or behind it."""
    before = path.read_text()
    if random.random() < 0.3:
        extra = random.choice(YAML)
        path.write_text(random.choice([extra, before + extra]))
        return f"YAML {extra[:20]!r}"
    value, said = in_value(yaml.safe_load(before), random)
    text = dumped(value)
    if len(text) > 100_000:
        text = text.replace("[" * 50_000, "[" * 300_000).replace("]" * 50_000, "]" * 300_000)
    path.write_text(text)  # JSON is YAML
    return said


def in_lines(path: Path, random: Random) -> str:
    """Lines of JSON (events), or of values between commas (scores)."""
    lines = path.read_text().splitlines()
    number = random.randrange(len(lines))
    if path.suffix == ".jsonl":
        value, said = in_value(json.loads(lines[number]), random)
        lines[number] = dumped(value)
    else:
        cells = lines[number].split(",")
        place, new = random.randrange(len(cells)), random.choice(HOSTILE)
        cells[place] = "" if isinstance(new, dict) else str(new).encode("utf-8", "replace").decode()
        said = f"cell {place} is {str(new)[:40]!r}"
        lines[number] = ",".join(cells)
    more = random.choice(["", "", "", "", "x", "twice", "out", '"', "\0", "long"])
    if more == "twice":
        lines.append(lines[number])
    elif more == "out":
        del lines[number]
    elif more == "long":
        lines.append("x" * 200_000)
    else:
        lines.append(more)
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogateescape")
    return f"line {number}: {said} {more}"


# -- in a tensor file

BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "U16": 2,
    "C64": 8,
}


def in_header(path: Path, random: Random) -> str:
    """A value in the header, the data as they are."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    value, said = in_value(json.loads(content[8 : 8 + length]), random)
    text = dumped(value).encode()
    path.write_bytes(
        random.choice([len(text)] * 20 + [2**63, 0, length]).to_bytes(8, "little")
        + text
        + content[8 + length :]
    )
    return f"header: {said}"


def in_snapshot(path: Path, random: Random) -> str:
    """A value of what is said about the state inside a task, or a tensor,
    with the hash that goes with it.
    """
    kept = Snapshot.load(path)
    if random.random() < 0.3:
        name, other = random.choice(list(kept.tensors)), random.choice(list(kept.tensors))
        Snapshot(kept.about, kept.tensors | {name: kept.tensors[other].clone()}).save(path)
        return f"{name} is {other}"
    about, said = in_value(kept.about, random)
    if isinstance(about, dict):
        Snapshot(about, kept.tensors).save(path)
    return f"about: {said}"


def in_tensors(path: Path, random: Random) -> str:
    """Other tensors in a file that is sound as such: of another shape, type, or name;
    values that are not finite.
    """
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    about = {"__metadata__": header.pop("__metadata__")} if "__metadata__" in header else {}
    tensors = {
        name: (one["dtype"], one["shape"], content[8 + length :][slice(*one["data_offsets"])])
        for name, one in header.items()
    }
    said = []
    for _ in range(random.choice([1, 1, 2])):
        name = random.choice([*tensors, "new"])
        change = random.choice(
            ["shape", "shape", "dtype", "name", "out", "values", "values", "size", "copy"]
        )
        said.append(f"{change} {name}")
        old = tensors.get(name, ("F32", [1], b"\0\0\0\0"))
        if change in ("name", "out"):
            tensors.pop(name, None)
        if change == "name":
            names = [
                "",
                "x",
                "fruit/bias",
                "../x/weight",
                "colour/weight",
                f"{name}x",
                f"x.{name}",
                "\0",
                "a.b",
            ]
            tensors[random.choice(names)] = old
        elif change == "copy":
            tensors[random.choice([*tensors, "x"])] = old
        elif change != "out":
            tensors[name] = TENSOR[change](*old, random)
    entries, end = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps((about if random.random() < 0.9 else {}) | entries).encode()
    path.write_bytes(
        len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values())
    )
    return "; ".join(said)


Stored = tuple[str, list[int], bytes]


def _shape(dtype: str, shape: list[int], data: bytes, random: Random) -> Stored:
    """The same numbers in other rows."""
    n = len(data) // BYTES[dtype]
    shape = random.choice([[n], [1, n], [n, 1], shape[::-1], [*shape, 1], [2, n // 2]])
    return dtype, shape, data[: BYTES[dtype] * math.prod(shape)]


def _size(dtype: str, shape: list[int], data: bytes, random: Random) -> Stored:
    """More or fewer zeros."""
    other = random.choice(
        [[], [0], [0, 10**15], [10**15, 0], [1], [10**5, 1], [1000, 1000], [2, 3], [*shape, 0]]
    )
    shape = random.choice([other, [max(0, n + random.choice([-1, 0, 1, n])) for n in shape]])
    return dtype, shape, bytes(min(BYTES[dtype] * math.prod(shape), 20_000_000))


def _dtype(dtype: str, shape: list[int], data: bytes, random: Random) -> Stored:
    """The same shape of another type."""
    dtype = random.choice(list(BYTES))
    return dtype, shape, (data * 8)[: BYTES[dtype] * math.prod(shape)]


def _values(dtype: str, shape: list[int], data: bytes, random: Random) -> Stored:
    """One or all of the numbers are NaN, infinite, zero, or very large."""
    one = random.choice(
        [b"\xff" * 8, b"\0" * 8, b"\0\0\x80\x7f" * 2, b"\x7f" * 8, b"\0\0\0\0\0\0\xf0\x7f"]
    )
    return dtype, shape, (random.choice([one + data, one * (len(data) // 8 + 1)]))[: len(data)]


TENSOR: dict[str, Callable[[str, list[int], bytes, Random], Stored]] = {
    "shape": _shape,
    "size": _size,
    "dtype": _dtype,
    "values": _values,
}


CHANGES: dict[str, list[Callable[[Path, Random], str]]] = {
    ".json": [in_json],
    ".yaml": [in_yaml],
    ".csv": [in_lines],
    ".jsonl": [in_lines],
    ".safetensors": [in_header, in_tensors, in_tensors],
}
