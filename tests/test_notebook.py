"""The notebook of docs/: its code cells run in order, in an empty folder, and training beats chance."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "first_steps.ipynb"


@pytest.mark.long
def test_the_notebook_runs(tmp_path: Path) -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells), "outputs are not committed"
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    beats = '\nassert all(result.test[n] > 2 * result.chance[n] for n in ("i2t_recall@10", "t2i_recall@10"))'
    done = subprocess.run(
        [sys.executable, "-c", code + beats],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "report.html").exists()
