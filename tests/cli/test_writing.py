"""Every command that writes: its output is there whole or not at all,
and nothing outside its folder ever changes.

`writers.py` tries it out. `make soak` tries every operation on a file, and every place;
here a few are drawn.
"""

import json
import os
from pathlib import Path

import forked
import pytest
import writers

SOAK = bool(os.environ.get("PERDURE_SOAK"))
SEED = os.environ.get("PERDURE_SEED") or "0"
SOME = {
    "kills": ("predict", "merge", "learn"),
    "faults": ("export", "diagnose", "forget"),
    "links": ("forget", "report", "run"),
}


@pytest.fixture(scope="module")
def begun(pico, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("writing")
    writers.prepare(place, pico("bert"))
    return place


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("way", writers.WAYS)
def test_every_command(way, begun):
    names = tuple(writers.COMMANDS) if SOAK else SOME[way]
    given = (begun, way, ",".join(names), 1 if SOAK else 0.004, SEED)
    done = forked.python("import writers; writers.main()", *given, timeout=36_000 if SOAK else 600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(way, found["tried"])
    assert not found["wrong"], "\n".join(found["wrong"][:20])
    assert set(found["tried"]) == set(names)
