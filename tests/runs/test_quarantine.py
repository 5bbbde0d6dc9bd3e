"""The list of bad images: once each, over kills and resumed runs, and a summary by reason."""

from __future__ import annotations

from pathlib import Path

from varalign.runs.quarantine import Quarantine, summary


def test_names_stand_once_also_after_a_kill_in_the_middle_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    first = Quarantine(path)
    first.add({})
    assert not path.exists()
    first.add({"a.jpg": "cut short"})
    first.add({"a.jpg": "cut short", "b.jpg": "no image"})
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    second = Quarantine(path)
    assert second.found == {"a.jpg": "cut short"}
    second.add({"a.jpg": "cut short", "b.jpg": "no image"})
    assert Quarantine(path).found == {"a.jpg": "cut short", "b.jpg": "no image"}


def test_the_summary_counts_reasons_without_paths() -> None:
    bad = {f"{n}.jpg": f"/data/Images/{n}.jpg: JPEG image: the file is cut short" for n in range(4)}
    bad |= {"x.png": "cannot read /data/Images/x.png: Permission denied", "y.gif": "y", "z.gif": "z"}
    said = summary(bad)
    assert said.startswith(
        "4 × JPEG image: the file is cut short (0.jpg, 1.jpg, …); 1 × Permission denied (x.png); 1 ×"
    )
    assert said.endswith("; 1 for other reasons")
