"""Looking image names up in a folder."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

from varalign.data.readers.image_folder import ImageFolder


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
