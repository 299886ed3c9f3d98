"""What something was made of: it is noted whole, or nothing is made."""

import pytest
from small_runs import make, recipe

from perdure import Run, RunError, diagnose
from perdure.runs.sources import Sources
from perdure.storage import files


@pytest.fixture
def run(pico, tmp_path) -> Run:
    return make(
        tmp_path, "run", recipe(tmp_path, ["fruit", "colour"], pico("bert"), training={"epochs": 1})
    )


@pytest.mark.parametrize("name", ["recipe.yaml", "tasks/01-colour/manifest.json"])
def test_a_file_that_cannot_be_read_is_an_error_and_not_a_task_less(name, run, monkeypatch):
    """The disk fails once, as the sources are noted; read again, the file is there."""
    whole, reads = files.read_bytes, []

    def failing(path, *rest):
        if path == run.folder / name and not reads:
            reads.append(path)
            raise OSError(5, "Input/output error", str(path))
        return whole(path, *rest)

    monkeypatch.setattr(files, "read_bytes", failing)
    with pytest.raises(RunError, match=f"`{run.folder / name}` cannot be read: Input/output error"):
        diagnose(run.folder, only=["interference"])
    assert not (run.folder / "diagnostics.json").exists()
    reads.clear()
    assert len(Sources.readable(run.folder).tasks) == {"recipe.yaml": 0}.get(name, 1)
    assert list(Sources.of(run.folder).tasks) == ["fruit", "colour"]
