"""Opening a model's folder is safe, whatever is in it: it works,
or perdure says in a sentence what is wrong.

`fuzz_model_folder.py` tries it out: no other error, no hang (10 seconds), and no more than 1 GB of
memory above what there is before the first input, which the system enforces.
A part of the inputs is tried in each test run, all with `PERDURE_SOAK=1`.
"""

import json
import os
from pathlib import Path

import forked
from families import all_forms

INPUTS = 200 if os.environ.get("PERDURE_SOAK") else 25
SEED = int(os.environ.get("PERDURE_SEED") or 0)


def test_damaged_folders(tmp_path: Path) -> None:
    all_forms(tmp_path / "models")
    code, given = "import fuzz_model_folder; fuzz_model_folder.main()", (".", SEED, 0, INPUTS)
    done = forked.python(code, *given, cwd=tmp_path, timeout=600 + 10 * INPUTS)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    print(json.dumps(found, indent=1))
    assert not found["faults"], f"with PERDURE_SEED={SEED}: {json.dumps(found['faults'], indent=1)}"
    assert found["outcomes"]["refused"] > INPUTS / 4  # the damage reaches what reads it
    assert found["outcomes"]["works"] > 0
