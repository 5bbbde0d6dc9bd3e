"""What a launcher says of its processes, and how rows are shared among them."""

from __future__ import annotations

import numpy as np
import pytest
from varalign.cli.program import main
from varalign.data.ranks import ALONE, Ranks, RanksError, alone, said_by_launcher, world

LAUNCHED = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def test_shares_are_consecutive_and_differ_by_one_row() -> None:
    rows = np.arange(11)
    parts = [Ranks(rank, 4).share(rows) for rank in range(4)]
    assert np.array_equal(np.concatenate(parts), rows) and [len(part) for part in parts] == [3, 3, 3, 2]
    assert [rows[part].tolist() for part in Ranks(0, 4).shares(11)] == [part.tolist() for part in parts]


def test_one_process_is_alone() -> None:
    assert world() is ALONE and ALONE.is_writer and ALONE.group is None
    assert ALONE.agreed(3) == 3 and ALONE.gathered(3) == [3] and ALONE.by_writer(lambda: 4) == 4
    rows, flags = ALONE.rows_and_flags(np.array([5, 6]), 2, [7])
    assert rows.tolist() == [5, 6] and flags == [7]
    with alone():
        assert world().size == 1


@pytest.mark.parametrize(("changed", "size"), [({}, 2), ({"RANK": "1"}, 2), ({"WORLD_SIZE": "1"}, 1)])
def test_the_launcher_s_variables_are_read(changed: dict[str, str], size: int) -> None:
    assert said_by_launcher(LAUNCHED | changed) == size
    assert said_by_launcher({"WORLD_SIZE": "2"}) == 1  # of another program: no rank, no place to meet


@pytest.mark.parametrize("changed", [{"RANK": "2"}, {"RANK": "-1"}, {"WORLD_SIZE": "many"}])
def test_variables_that_fit_no_process_are_refused(changed: dict[str, str]) -> None:
    with pytest.raises(RanksError, match="are no rank and number of processes: unset them"):
        said_by_launcher(LAUNCHED | changed)


def test_a_command_for_one_process_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    for rank, said in (("0", "this command runs in one process: start it without torchrun"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as left:
            main(["data", "stats", "nowhere"])
        assert left.value.code == 2 and said in capsys.readouterr().err.replace("\n", " ")
    assert capsys.readouterr().err == ""
