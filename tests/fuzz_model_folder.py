"""Open model folders after one of their files was changed:
`python fuzz_model_folder.py PLACE SEED FIRST LAST`.

Each input is made from the seed and its number alone. Allowed is that the model is refused in
perdure's own words, or that it works: its features are finite, the same for every seed of torch,
and those of a text do not depend on the texts beside it. Memory is limited to what there is before
the first input and `MEMORY` more; an input that takes longer than `SECONDS` hangs. Prints JSON:
what came out how often, and what should not have.

In PLACE there must be the folder `models` with one folder for each model, as `prepare` makes them.
"""

import collections
import dataclasses
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path
from random import Random
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
import transformers
from datasets import Dataset
from mutations import mutate
from PIL import Image

from perdure import Backbone, PerdureError
from perdure.data.task import TaskRows

MEMORY = 1_000_000_000  # bytes
SECONDS = 10
ABSURD: list[Any] = [
    *(
        0,
        -1,
        3,
        17,
        1000,
        100_000,
        10**9,
        10**12,
        2**63,
        10**30,
        0.5,
        1e308,
        float("nan"),
        float("inf"),
    ),
    *(
        True,
        None,
        "",
        "x",
        "relu7",
        "cuda",
        "float8",
        [],
        [1, 2],
        ["a"] * 1000,
        {},
        {"0": "a"},
        {"x": [1]},
    ),
    *(
        {"quant_method": "gptq"},
        {"AutoModel": "code.Model", "AutoConfig": "code.Config"},
        "../../x",
        "org/kernel",
    ),
]
TEMPLATES = (
    "{{ raise_exception('no') }}",
    "{% for turn in messages %}",
    "{{ 'x' * 10**12 }}",
    "{{ messages[7].content }}",
    "{{ messages.pop() }}",
    "{{ ''.__class__.__mro__ }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "{{ messages }}{% if add_generation_prompt %}ask{% endif %}",
    "",
)
KEYS = (
    *(
        "num_hidden_layers",
        "hidden_size",
        "vocab_size",
        "num_attention_heads",
        "intermediate_size",
        "hidden_act",
    ),
    *(
        "max_position_embeddings",
        "type_vocab_size",
        "pad_token_id",
        "num_labels",
        "id2label",
        "label2id",
    ),
    *(
        "layer_norm_eps",
        "hidden_dropout_prob",
        "initializer_range",
        "dtype",
        "model_type",
        "auto_map",
    ),
    *(
        "quantization_config",
        "architectures",
        "rope_parameters",
        "layer_types",
        "is_decoder",
        "attn_implementation",
    ),
    *(
        "image_size",
        "patch_size",
        "num_channels",
        "n_layer",
        "d_model",
        "num_layers",
        "tie_word_embeddings",
    ),
)


class Hang(BaseException):
    """An input takes too long."""


def in_config(folder: Path, random: Random) -> str:
    """One or two keys of the configuration with absurd values, or without any."""
    path = folder / "config.json"
    values = json.loads(path.read_text())
    said = []
    for _ in range(random.choice([1, 1, 2])):
        key = random.choice([random.choice(KEYS), random.choice(list(values))])
        if random.random() < 0.15:
            values.pop(key, None)
            said.append(f"without {key}")
            continue
        values[key] = random.choice(ABSURD)
        said.append(f"{key} = {str(values[key])[:40]}")
    path.write_text(json.dumps(values))
    return f"config.json: {'; '.join(said)}"


def in_weights(folder: Path, random: Random) -> str:
    """A tensor under another name, in another shape, or left out;
    or all of them with another prefix.
    """
    from safetensors.torch import load_file, save_file

    path = random.choice(sorted(folder.glob("*.safetensors")))
    tensors = load_file(path)
    name = random.choice(sorted(tensors))
    kind = random.choice(["out", "renamed", "reshaped", "prefix", "nan", "half", "integer"])
    if kind == "prefix":
        tensors = {f"module.{key}": value for key, value in tensors.items()}
    elif kind == "nan":
        tensors[name].view(-1)[0] = float("nan")
    elif kind == "half":
        tensors = {key: value.half() for key, value in tensors.items()}
    else:
        value = tensors.pop(name)
        kept = {"renamed": {f"{name}.x": value}, "integer": {name: value.to(torch.int32)}}
        reshaped = {name: torch.cat([value, value]) if value.dim() else value}
        tensors |= {"out": {}, "reshaped": reshaped, **kept}[kind]
    save_file(tensors, path, {"format": "pt"})
    return f"{path.name}: {kind} {name}"


def answers(backbone: Any) -> torch.Tensor:
    """Return losses and features of two prompts, each alone and together; check the answers."""
    rows = Dataset.from_dict({"text": ["ab", "cde"], "target": ["x", "yz"]})
    examples = backbone.encode([TaskRows("a", rows)])
    values = []
    with torch.no_grad():
        for numbers in ([0], [0, 1]):
            batch = examples.batch(numbers)
            of_batch = [backbone.losses(batch)[:, None], backbone.features(batch)]
            values.append(torch.cat(of_batch, dim=1))
        assert backbone.rank(batch, {"a": ("x", "yz")})["a"].isfinite().all()
        backbone.prompts = dataclasses.replace(backbone.prompts, max_new_tokens=8)
        assert len(backbone.generate(batch)) == 2
    return torch.cat(values)


def in_generation(folder: Path, random: Random) -> str:
    """A chat template that does not work, or settings for generating with absurd values."""
    if random.random() < 0.5:
        template = random.choice(TEMPLATES)
        (folder / "chat_template.jinja").write_text(template)
        return f"chat_template.jinja: {template[:60]}"
    path = folder / "generation_config.json"
    values = json.loads(path.read_text())
    key = random.choice(["eos_token_id", "pad_token_id", "max_new_tokens", "do_sample", *values])
    values[key] = random.choice(ABSURD)
    path.write_text(json.dumps(values))
    return f"generation_config.json: {key} = {str(values[key])[:40]}"


def features(folder: Path, seed: int) -> torch.Tensor:
    """The feature of an example alone and of both together,
    from a model opened with a seed of torch.
    """
    torch.manual_seed(seed)
    backbone = Backbone.load(folder).eval()
    if not backbone.has_heads:
        return answers(backbone)
    values: list[Any] = ["w1 w2", "w3 w4 w5 w6"]
    if backbone.kind == "image":
        values = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    rows = Dataset.from_dict({backbone.kind: values})
    examples = backbone.encode([TaskRows("a", rows)])
    with torch.no_grad():
        alone = backbone(examples.batch([0]))
        both = backbone(examples.batch([0, 1]))
    return torch.cat([alone, both])


def check_works(folder: Path) -> None:
    first = features(folder, 1)
    assert first.isfinite().all(), "the features are not finite"
    scale = first.abs().max().clamp_min(1e-3)
    assert (first[0] - first[1]).abs().max() <= 1e-3 * scale, (
        "a feature depends on the example beside it"
    )
    assert torch.equal(features(folder, 2), first), "another seed gives another model"


def attempt(number: int, seed: int, found: dict[str, Any]) -> None:
    """One input."""
    random = Random(f"{seed} {number}")
    case = Path("case").absolute()
    shutil.rmtree(case, ignore_errors=True)
    model = random.choice(sorted(path.name for path in Path("models").iterdir()))
    shutil.copytree(Path("models") / model, case)
    changes = [
        mutate,
        mutate,
        in_config,
        in_config,
        *([in_weights] if list(case.glob("*.safetensors")) else []),
        *([in_generation] * 2 if (case / "generation_config.json").exists() else []),
    ]
    said = f"{model}: {random.choice(changes)(case, random)}"
    began = time.monotonic()
    signal.alarm(SECONDS)
    try:
        check_works(case)
        outcome = "works"
    except PerdureError as error:
        outcome = "refused"
        if "\n" in str(error) or len(str(error)) > 1000:
            found["faults"][f"{number}: {said}"] = f"not one sentence: {error}"
        found["sentences"][type(error).__name__] += 1
        found["said"].append(f"{said} -> {error}")
    except (Exception, Hang) as error:
        signal.alarm(0)
        frames = traceback.extract_tb(error.__traceback__)
        where = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames][-6:]
        found["faults"][f"{number}: {said}"] = (
            f"{type(error).__name__}: {str(error)[:300]} at {where}"
        )
        outcome = "WRONG"
    finally:
        signal.alarm(0)
    found["outcomes"][outcome] += 1
    took = time.monotonic() - began
    if took > found["longest"][0]:
        found["longest"] = [round(took, 2), number, said]


def main() -> None:
    place, seed, first, last = sys.argv[1], *map(int, sys.argv[2:])
    os.chdir(place)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    Path("outside").mkdir(exist_ok=True)
    Path("outside/file").write_text("mine")
    for model in sorted(Path("models").iterdir()):  # all sound, and everything is imported now
        check_works(model)

    def hang(*_: Any) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, hang)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: dict[str, Any] = {
        "outcomes": collections.Counter(),
        "sentences": collections.Counter(),
        "faults": {},
        "longest": [0.0],
        "said": [],
    }
    for number in range(first, last):
        attempt(number, seed, found)
    assert Path("outside/file").read_text() == "mine"
    found["more_memory"] = 1000 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
