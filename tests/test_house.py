"""The rules of the house, read from the source: what may import what, no circles, no long files."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from house import (
    PACKAGE,
    ROOT,
    circles,
    import_graph,
    imports_of,
    lines_of,
    modules,
    python_files,
    rust_files,
    rust_graph,
)
from varalign.data.sample import write_sample

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
LONGEST_FILE = 450
MOST_TRAINING_FILES = 15
# The distribution that brings a module, where the names differ.
BROUGHT_BY = {"PIL": "pillow", "faiss": "faiss-cpu", "sklearn": "scikit-learn", "open_clip": "open-clip-torch"}


def rooms() -> dict[str, str]:
    """The room of each module; the package's face and `python -m varalign` are in none."""
    return {name: name.split(".")[1] for name in modules() if name not in ("varalign", "varalign.__main__")}


def test_a_room_imports_only_from_floors_below_or_its_own() -> None:
    paths = modules()
    for name, room in rooms().items():
        for target in imports_of(paths[name]):
            if target.startswith("varalign.") and (other := target.split(".")[1]) in FLOOR_OF:
                assert FLOOR_OF[other] >= FLOOR_OF[room], f"{name} imports {target} from a floor above"


def test_every_room_has_a_floor() -> None:
    assert set(rooms().values()) <= set(FLOOR_OF)


def test_no_import_circle() -> None:
    assert circles(import_graph()) == []


def test_no_two_rust_files_use_each_other() -> None:
    assert circles(rust_graph()) == []


def test_the_searches_find_what_they_should() -> None:
    """A pair, a ring and a loop are circles; a parent that only declares its child is in none."""
    assert circles({"a": {"b"}, "b": {"a", "c"}, "c": {"d"}, "d": set()}) == [["a", "b"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"d"}}) == [["a", "b", "c"], ["d"]]
    graph = rust_graph()
    assert "crate::error" in graph["crate::image::decode"]
    assert graph["crate"] == set(), "lib.rs declares its modules and uses none"


def test_no_file_of_the_product_is_long() -> None:
    long = {path.relative_to(ROOT).as_posix(): lines_of(path) for path in (*python_files(), *rust_files())}
    assert {path: lines for path, lines in long.items() if lines > LONGEST_FILE} == {}


def test_training_is_no_crowd() -> None:
    assert len(list((PACKAGE / "training").glob("*.py"))) <= MOST_TRAINING_FILES


def test_no_two_files_have_one_name() -> None:
    stems = Counter(path.stem for path in PACKAGE.rglob("*.py") if path.stem != "__init__")
    assert [stem for stem, times in stems.items() if times > 1] == []


def test_benchmarks_name_tests_that_are_there() -> None:
    named = {
        name for file in (ROOT / "bench").glob("*.py") for name in re.findall(r"tests/[\w/]+\.py", file.read_text())
    }
    assert named and not [name for name in named if not (ROOT / name).is_file()]


def test_every_library_that_is_used_is_declared() -> None:
    words = re.findall(r'"([\w-]+)>=', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    declared = {word.lower().replace("_", "-") for word in words}
    used = {target.split(".")[0] for path in modules().values() for target in imports_of(path)}
    others = used - set(sys.stdlib_module_names) - {"varalign"}
    assert {BROUGHT_BY.get(name, name).lower().replace("_", "-") for name in others} - declared == set()


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


def forbidding(words: list[str], forbidden: list[str]) -> str:
    """Code that runs a command line and fails where one of these modules is imported by then."""
    return (
        f"assert not main({words!r})\n"
        f"found = sorted(set({forbidden!r}) & set(sys.modules))\nassert not found, ({words[0]!r}, found)\n"
    )


def test_commands_import_no_more_than_they_need(tmp_path: Path) -> None:
    """torch.optim, torch.library and torchvision import torch._dynamo unasked; a plot takes longer than a search."""
    folder, run = str(tmp_path / "sample"), str(tmp_path / "run")
    write_sample(folder, images=24, size=32)
    never = ["torch._dynamo", "torchvision", "transformers", "open_clip", "timm", "sklearn"]
    drawing = ["matplotlib", "varalign.training", "varalign.pictures.plots"]
    training = ["--image-size", "32", "--epochs", "1", "--batch-size", "8", "--start", "random", "--threads", "1"]
    for code in (
        forbidding(["train", "--data", folder, "--out", run, *training], never),
        forbidding(["eval", run], [*never, *drawing]) + forbidding(["search", run, "a red square"], [*never, *drawing]),
    ):
        done = subprocess.run(
            [sys.executable, "-c", f"import sys\nfrom varalign.cli import main\n{code}"],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr


def test_import_varalign_is_lazy_and_complete() -> None:
    code = (
        "import sys, varalign\nassert 'torch' not in sys.modules\n"
        "[getattr(varalign, name) for name in varalign.__all__]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
