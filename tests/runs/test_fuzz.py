"""Reading a run folder is safe, whatever is in it: it works,
or says in perdure's own words what is wrong.

`fuzz_run_folder.py` tries it out: no other error, no hang (10 seconds), and no more memory than 500
MB above what there is before the first input, which the system enforces.
`PERDURE_FUZZ` says how many inputs, `PERDURE_SEED` which.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import forked

import perdure

INPUTS = int(os.environ.get("PERDURE_FUZZ") or (10_000 if os.environ.get("PERDURE_SOAK") else 125))
SEED = int(os.environ.get("PERDURE_SEED") or 0)
HERE = Path(__file__).parents[1]
KINDS = {
    *(
        "recipe.yaml",
        "environment.json",
        "lock.json",
        "scores.csv",
        "events.jsonl",
        "combined.json",
        "manifest.json",
    ),
    *(
        "unfinished.safetensors",
        "task.json",
        "adapter_config.json",
        "adapter_model.safetensors",
        "start.safetensors",
    ),
    *("head.safetensors", "statistics.safetensors", "method.safetensors", "inputs.safetensors"),
    *("gaussians.safetensors", "backbone.json", "answers.json"),
}


def beside(folder: Path) -> Path:
    """Where the runs of format 1 are."""
    return Path(shutil.copytree(HERE / "formats" / "1", folder / "runs"))


def test_every_kind_of_file_damaged(tmp_path):
    code, given = "import fuzz_run_folder; fuzz_run_folder.main()", (".", SEED, 0, INPUTS)
    done = forked.python(code, *given, cwd=beside(tmp_path), timeout=600 + INPUTS)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    print(json.dumps(found, indent=1))
    assert not found["faults"], f"with PERDURE_SEED={SEED}: {json.dumps(found['faults'], indent=1)}"
    assert set(found["files"]) == KINDS
    refused = sum(number for name, number in found["outcomes"].items() if name.endswith("refused"))
    assert refused > INPUTS / 2  # the damage reaches what reads it


OFFLINE = """
import os, socket, sys, warnings
warnings.simplefilter("ignore")
calls = []
def refuse(*given, **more):
    calls.append(given)
    raise OSError("no network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from pathlib import Path
from perdure import Model, PerdureError, Recipe, Run, verify
from perdure.report.summary import summarise
lost = [path for path in Path("isolated").rglob("*") if path.is_file()]
for path in [None, *lost]:
    content = path.read_bytes() if path else b""
    if path:
        path.unlink()
    for act in (
        lambda: Model("isolated").predict(["w1"]),
        lambda: verify("isolated"),
        lambda: summarise(["isolated"]),
    ):
        try:
            act()
        except PerdureError:
            assert path, "it is sound"
    assert not calls, f"without {path}: {calls}"
    if path:
        path.write_bytes(content)
Recipe.read("isolated/recipe.yaml").run("isolated")
assert not calls, f"going on: {calls}"
print(len(lost))
"""


def test_nothing_is_asked_of_the_network(tmp_path, monkeypatch):
    """Neither for a sound run nor for one that lacks a file, `adapter_config.json` among them."""
    monkeypatch.delenv("HF_HUB_OFFLINE")  # which is read when things are imported
    environment = os.environ | {
        "PYTHONPATH": str(Path(perdure.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", OFFLINE]
    options = {"capture_output": True, "text": True, "env": environment, "timeout": 300}
    done = subprocess.run(command, cwd=beside(tmp_path), **options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 15
