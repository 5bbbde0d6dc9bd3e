"""The pages of docs/: every public name is on an API page, and every page is in a table of contents.

`make docs` builds the pages and takes warnings for errors; these checks need no Sphinx.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
MODULES = re.compile(r"^\.\. automodule:: (\S+)\n   :members:(.*)$", re.M)
API = "\n".join(page.read_text(encoding="utf-8") for page in sorted((DOCS / "api").glob("*.md")))


def documented() -> set[str]:
    """The full names that the API pages document."""
    found = set(re.findall(r"^\.\. auto(?:class|function|data):: (\S+)$", API, re.M))
    for module, names in MODULES.findall(API):
        listed = names.split(",") if names.strip() else import_module(module).__all__
        found |= {f"{module}.{name.strip()}" for name in listed}
    return found | set(re.findall(r"`(varalign\.__version__)`", API))


@pytest.mark.parametrize("room", ["varalign", "varalign.canonical", "varalign.schedules"])
def test_every_public_name_is_on_a_page(room: str) -> None:
    wanted = {getattr(import_module(room), name) for name in import_module(room).__all__ if not name.isupper()}
    pages = documented()
    there = [getattr(import_module(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in pages]
    assert wanted - {value for value in there if value.__hash__ is not None} == set()


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = {"index"}
    for page in DOCS.rglob("index.md"):
        for block in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            names = [line for line in block.splitlines() if line and not line.startswith(":")]
            listed |= {(page.parent / name).relative_to(DOCS).as_posix() for name in names}
    pages = {page.relative_to(DOCS).with_suffix("").as_posix() for page in DOCS.rglob("*.md")}
    assert {page for page in pages if not page.startswith("_build/")} == listed
