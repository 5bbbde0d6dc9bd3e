"""Results of cells: what was written comes back, what is damaged is named with its file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from varalign.data.errors import DataError
from varalign.study.grid import Cell, Pack
from varalign.study.report import csv_text
from varalign.study.store import Store

RESULT: dict[str, Any] = {
    "dev": 0.5, "epochs": 3, "best_epoch": 2, "options": {}, "finite": True,
    "ranks_i2t": "0+", "ranks_t2i": "01+", "captions": [1, 2], "w_i2t": [0.5, 0.4],
}  # fmt: skip
PACK = Pack((Cell("run", {"schedule": "fixed"}, {}, "fixed", 0.5, 0),), ("cell",))


def test_a_result_comes_back_as_it_was_written(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert not store.has(PACK)
    store.write(PACK, [RESULT], 1.0)
    assert Store(tmp_path).has(PACK)
    found = Store(tmp_path).result("cell")
    assert {name: found[name] for name in RESULT} == RESULT and found["cell"] == {"schedule": "fixed"}
    tuning = {name: RESULT[name] for name in ("dev", "epochs", "best_epoch", "options", "finite")}
    store.write_text("cells/tune.json", json.dumps({**tuning, "kind": "tune"}))
    assert store.result("tune")["dev"] == 0.5


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "[" * 100_000, "\ud800", *(json.dumps({**RESULT, **change}) for change in (
            {"dev": None}, {"dev": "0.5"}, {"finite": None}, {"options": []}, {"epochs": 1.5}, {"captions": [2, 2]},
            {"captions": [-1, 4]}, {"captions": []}, {"ranks_i2t": "0"}, {"ranks_t2i": 3}, {"w_i2t": [1.5]},
            {"w_i2t": ["x"]}, {"w_i2t": None},
        )),
    ],
)  # fmt: skip
def test_a_damaged_result_is_named(tmp_path: Path, text: str) -> None:
    store = Store(tmp_path)
    (store.cells / "cell.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError, match=r"cell\.json: not a whole result \(.*\); delete it, and the cell is run"):
        store.result("cell")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_in_the_place_of_a_result_is_not_waited_for(tmp_path: Path) -> None:
    store = Store(tmp_path)
    os.mkfifo(store.cells / "cell.json")
    assert not store.has(PACK)
    with pytest.raises(DataError, match="named pipe"):
        store.result("cell")


def test_tables_hold_no_formulas() -> None:
    rows = [
        {"text_encoder": "=HYPERLINK(1)", "mean_recall@1": 0.1},
        {"text_encoder": "@SUM(A1)", "mean_recall@1": -0.1},
    ]
    assert csv_text(rows).splitlines() == ["text_encoder,mean_recall@1", "'=HYPERLINK(1),0.1", "'@SUM(A1),-0.1"]
