"""The floors of the house: what may import what, read from the source."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest
from varalign.data.sample import write_sample

PACKAGE = Path(__file__).resolve().parent.parent / "python" / "varalign"
FLOORS = [
    {"cli"},
    {"study"},
    {"training"},
    {"aligner"},
    {"pictures"},
    {"inputs"},
    {"runs"},
    {"options"},
    {"canonical", "losses", "schedules", "encoders", "evaluation", "data"},
    {"kernels", "_core"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
HEAVY = ("transformers", "open_clip", "matplotlib", "sklearn", "timm")


def modules() -> dict[str, Path]:
    """Every module of the package by dotted name, but for the package's own face."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        if parts and parts[-1] != "__main__":
            found[".".join(("varalign", *parts))] = path
    return found


def imports_of(path: Path, *, top_level: bool = False) -> set[str]:
    """The modules that a file imports; `from a import b` is a.b where that is one; `if TYPE_CHECKING` is left out."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else list(ast.walk(tree))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in nodes:
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inner = PACKAGE.parent.joinpath(*node.module.split("."), alias.name)
                is_module = inner.with_suffix(".py").exists() or inner.is_dir()
                found.add(f"{node.module}.{alias.name}" if is_module else node.module)
    return found


def test_a_room_imports_only_from_floors_below_or_its_own() -> None:
    for name, path in modules().items():
        room = name.split(".")[1]
        for target in imports_of(path):
            if target.startswith("varalign.") and (other := target.split(".")[1]) in FLOOR_OF:
                assert FLOOR_OF[other] >= FLOOR_OF[room], f"{name} imports {target} from a floor above"


def test_every_room_has_a_floor() -> None:
    assert {name.split(".")[1] for name in modules()} <= set(FLOOR_OF)


def test_no_two_rooms_import_each_other_in_a_circle() -> None:
    known = modules()
    graph = {name: {target for target in imports_of(path) if target in known} for name, path in known.items()}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("library", HEAVY)
def test_heavy_libraries_are_imported_where_they_are_used(library: str) -> None:
    for name, path in modules().items():
        assert not any(target.split(".")[0] == library for target in imports_of(path, top_level=True)), name


@pytest.mark.parametrize(
    "argv", [["--help"], ["train", "--help"], ["study", "--help"], ["--version"], ["data", "check", "--help"]]
)
def test_help_imports_no_torch(argv: list[str]) -> None:
    code = (
        "import sys\nfrom varalign.cli import main\n"
        f"try:\n    main({argv!r})\nexcept SystemExit as leave:\n    assert not leave.code\n"
        "heavy = {'torch', 'transformers', 'open_clip', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_looking_at_a_data_set_imports_no_torch(tmp_path: Path) -> None:
    """`varalign data` decodes, cuts captions and counts in the compiled core."""
    folder = str(tmp_path / "sample")
    write_sample(folder, images=12, size=32)
    code = (
        "import sys\nfrom varalign.cli import main\n"
        f"for argv in (['data', 'stats', {folder!r}, '--json'], ['data', 'check', {folder!r}]):\n"
        "    assert not main(argv), argv\n"
        "heavy = {'torch', 'transformers', 'open_clip', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_import_varalign_is_lazy_and_complete() -> None:
    code = (
        "import sys, varalign\nassert 'torch' not in sys.modules\n"
        "[getattr(varalign, name) for name in varalign.__all__]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
