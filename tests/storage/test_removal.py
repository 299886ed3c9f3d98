"""A partial folder that cannot be removed: nothing is raised, and the next sweep takes it."""

import os

from perdure.storage import partial, staging


def test_a_failing_fstat(tmp_path, monkeypatch):
    """`rmtree` asks for the status of each open folder, and does not ignore that error itself."""
    asked = []

    def refuse(descriptor: int) -> os.stat_result:
        asked.append(descriptor)
        raise OSError(5, "Input/output error")

    with staging.hidden_folder(tmp_path) as folder:
        (folder / "trial").mkdir()
        monkeypatch.setattr(os, "fstat", refuse)
    assert asked and folder.exists()
    monkeypatch.undo()
    partial.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []
