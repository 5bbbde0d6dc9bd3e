"""Looking image names up in a folder."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from varalign.data.readers import image_folder
from varalign.data.readers.image_folder import ImageFolder, identical_files


def test_a_folder_holds_little_for_each_of_its_files(tmp_path: Path) -> None:
    for number in range(500):
        (tmp_path / f"{number}.jpg").write_bytes(b"x" * number)
    images = ImageFolder(tmp_path)
    tracemalloc.start()
    sizes = [found.size for number in range(500) if (found := images.find(f"{number}.jpg"))]
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert sizes == list(range(500))
    assert held < 500 * 250, held  # an entry of os.scandir with its `stat` has 700


@pytest.mark.parametrize("wait", [-1.0, 1e9])
def test_copies_are_found_by_threads_or_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: float) -> None:
    monkeypatch.setattr(image_folder, "_WAIT", wait)  # files take longer than that, or they do not
    for number in range(150):
        (tmp_path / f"{number:03}.jpg").write_bytes(b"%d" % (number % 140 + 100))
    folder = ImageFolder(tmp_path)
    images = [found for name in folder.names() if (found := folder.find(name))]
    assert identical_files(images).tolist() == [*range(140), *range(10)]
