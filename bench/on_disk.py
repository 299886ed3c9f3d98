"""Merging LoRA adapters into a model on disk: this library's command beside mergekit's,
each in its own process.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
import yaml
from measure import Row
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

ADAPTERS = 6
SIZES = {"small": (256, 2, 1000), "300M": (1024, 17, 32000), "2 GB": (2048, 17, 32000)}
"""Width, blocks, and words of Llama-shaped models."""


# A process begins with its parent's peak memory as its own, so a small one stands between.
LAUNCHER = """
import json, os, sys
errors = (os.POSIX_SPAWN_DUP2, 2, 1)
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[errors])
_, status, used = os.wait4(child, 0)
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss, used.ru_oublock]))
sys.exit(os.waitstatus_to_exitcode(status))
"""


@dataclass
class Used:
    """What a process used: CPU seconds, and bytes of memory at most and of files written."""

    seconds: float
    memory: int
    written: int


def used(command: list[str]) -> Used:
    """Run a command to its end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    launched = [sys.executable, "-c", LAUNCHER, *command]
    done = subprocess.run(launched, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    seconds, memory, blocks = json.loads(done.stdout.splitlines()[-1])
    return Used(seconds, 1024 * memory, 512 * blocks)


def make(folder: Path, size: str, dtype: torch.dtype) -> tuple[Path, list[Path]]:
    """A base of random weights and adapters of all its linear layers."""
    width, blocks, words = SIZES[size]
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_hidden_layers=blocks,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=words,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(dtype)
    base = folder / f"base-{size}"
    model.save_pretrained(base, max_shard_size="500MB")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, lora)
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    places = []
    for number in range(ADAPTERS):
        torch.manual_seed(number)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.02)
        places.append(folder / f"lora-{size}-{number}")
        wrapped.save_pretrained(places[-1])
    return base, places


def by_mergekit(folder: Path, base: Path, places: list[Path], dtype: str) -> tuple[Used, Path]:
    """Its task arithmetic with weights 1/n, and no merged adapters kept from before."""
    output = folder / "by-mergekit"
    models = [
        {"model": f"{base}+{place}", "parameters": {"weight": 1 / len(places)}} for place in places
    ]
    settings = {
        "models": models,
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "parameters": {"normalize": False},
        "dtype": dtype,
    }
    (folder / "mergekit.yaml").write_text(yaml.safe_dump(settings))
    options = [
        "--lora-merge-cache",
        str(folder / "cache"),
        "--lora-merge-dtype",
        dtype,
        "--no-copy-tokenizer",
    ]
    options += ["--no-write-model-card"]  # the card asks the hub what the base is
    command = [
        sys.executable,
        "-m",
        "mergekit.scripts.run_yaml",
        str(folder / "mergekit.yaml"),
        str(output),
    ]
    return used([*command, *options]), output


def by_us(folder: Path, base: Path, places: list[Path]) -> tuple[Used, Path]:
    output = folder / f"by-us-{base.name}"
    command = [
        sys.executable,
        "-c",
        "from perdure.cli.app import main; main()",
        "merge",
        str(base),
        *map(str, places),
    ]
    return used([*command, "--output", str(output), "--quiet"]), output


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def error(found: Path, base: Path, places: list[Path]) -> float:
    """How far the change of all weights is from the exact one, relative to it."""
    before, after = tensors(base), tensors(found)
    wrong = whole = 0.0
    adapters = [tensors(place) for place in places]
    for name, weight in before.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        exact = torch.zeros(())
        if f"{key}.lora_A.weight" in adapters[0]:
            parts = [
                2 * a[f"{key}.lora_B.weight"].double() @ a[f"{key}.lora_A.weight"].double()
                for a in adapters
            ]
            exact = sum(parts) / len(parts)
        change = after[name].double() - weight.double()
        wrong += (change - exact).square().sum().item()
        whole += exact.square().sum().item()
    return (wrong / whole) ** 0.5


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def on_disk() -> list[Row]:
    """Equality in float32 on a small model; speed and memory in bfloat16;
    memory on a model of 2 GB.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        return [*beside_mergekit(folder), large(folder)]


def beside_mergekit(folder: Path) -> list[Row]:
    base, places = make(folder, "300M", torch.bfloat16)
    ours, output = by_us(folder, base, places)
    rows = []
    written = f"{ours.written / 1e6:.0f} MB for {size_of(output) / 1e6:.0f} MB"
    rows.append(
        Row("bytes written, 300M bf16", written, ours.written / size_of(output), 1.1, least=False)
    )
    if importlib.util.find_spec("mergekit") is None:
        print(
            "  mergekit is not installed (pip install 'perdure[bench]'): not compared",
            file=sys.stderr,
        )
        return rows
    theirs, merged = by_mergekit(folder, base, places, "bfloat16")
    far = {"mergekit": error(merged, base, places), "ours": error(output, base, places)}
    off = f"mergekit {far['mergekit']:.1%} off, ours {far['ours']:.1%}"
    equal = f"of ΔW, {off} (bf16); {in_float32(folder)}"
    what = f"{ADAPTERS} LoRAs into a Llama of 285M parameters, bf16"
    sides = f"mergekit {theirs.seconds:.1f} s, ours {ours.seconds:.1f} s"
    rows.append(Row(f"{what}: CPU time", sides, theirs.seconds / ours.seconds, 5.0, equal=equal))
    sides = f"mergekit {theirs.memory / 1e9:.2f} GB, ours {ours.memory / 1e9:.2f} GB"
    rows.append(Row(f"{what}: peak memory", sides, theirs.memory / ours.memory, 3.0))
    return rows


def in_float32(folder: Path) -> str:
    """Both sides without rounding to bfloat16: the same to 1e-5."""
    part = folder / "float32"
    base, places = make(part, "small", torch.float32)
    _, ours = by_us(part, base, places)
    _, theirs = by_mergekit(part, base, places, "float32")
    left, right = tensors(ours), tensors(theirs)
    assert left.keys() == right.keys()
    worst = max(((left[k] - right[k]).norm() / right[k].norm()).item() for k in left)
    assert worst < 1e-5, worst
    return f"in float32 equal to {worst:.0e}"


def large(folder: Path) -> Row:
    base, places = make(folder, "2 GB", torch.bfloat16)
    found, output = by_us(folder, base, places)
    far = error(output, base, places)
    index = json.loads((output / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors(base)) and far < 0.1
    sides = f"model {size_of(output) / 1e9:.2f} GB, memory {found.memory / 1e6:.0f} MB"
    return Row(
        f"{ADAPTERS} LoRAs into a model on disk: peak memory, MB",
        sides,
        found.memory / 1e6,
        600,
        least=False,
    )
