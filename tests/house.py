"""Measures of the house, read from the source: imports, circles, lengths. `python tests/house.py` prints them.

Imports inside functions and under `if TYPE_CHECKING` count like all others.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "python" / "varalign"
KERNELS = ROOT / "kernels"
RUST = ROOT / "rust" / "src"
# A comment, a raw string, a string, a character: what may hold a brace or a quote that is none.
RUST_TEXT = r"""//[^\n]*|/\*.*?\*/|\br(#*)".*?"\1|"(?:\\.|[^"\\])*"|'(?:\\[^']+|\\'|[^'\\])'"""


def python_files() -> list[Path]:
    """Every Python file of the product; the kernels, which the package links to, under their own path."""
    linked = PACKAGE / "kernels"
    inside = [path for path in sorted(PACKAGE.rglob("*.py")) if linked not in path.parents]
    return inside + sorted(KERNELS.glob("*.py"))


def rust_files() -> list[Path]:
    return sorted(RUST.rglob("*.rs"))


def modules() -> dict[str, Path]:
    """Every Python file by the dotted name of its module; `varalign` itself is the package's face."""
    found = {}
    for path in python_files():
        inside = Path("kernels", path.name) if path.parent == KERNELS else path.relative_to(PACKAGE)
        parts = inside.with_suffix("").parts
        found[".".join(("varalign", *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
    return found


def imports_of(path: Path, *, top_level: bool = False) -> set[str]:
    """The modules that a file imports; `from a import b` is a.b where that is a module, else a."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inner = PACKAGE.parent.joinpath(*node.module.split("."), alias.name)
                is_module = any(inner.with_suffix(end).exists() for end in (".py", ".pyi")) or inner.is_dir()
                found.add(f"{node.module}.{alias.name}" if is_module else node.module)
    return found


def import_graph() -> dict[str, set[str]]:
    """Each Python module with those of the product that it imports."""
    known = modules()
    return {name: {target for target in imports_of(path) if target in known} for name, path in known.items()}


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The groups of nodes that reach each other (strongly connected components of two nodes or more, and loops)."""
    reached = {start: _reached(graph, start) for start in graph}
    groups = {
        tuple(sorted(other for other in targets if start in reached[other]))
        for start, targets in reached.items()
        if start in targets
    }
    return sorted(list(group) for group in groups)


def _reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    left = [start]
    while left:
        new = graph[left.pop()] - seen
        seen |= new
        left += new
    return seen


def rust_graph() -> dict[str, set[str]]:
    """Each Rust module (`image::jpeg`, the crate's root is `crate`) with those whose items it names, but in its tests.

    A module that only declares a child does not use it; one that names the child's items, in a `pub use` too, does.
    """
    sources = {_rust_module(path): _bare_rust(path.read_text(encoding="utf-8")) for path in rust_files()}
    graph = {}
    for module, source in sources.items():
        children = {name for name in sources if name != module and name.rpartition("::")[0] == module}
        graph[module] = {
            target for path in _rust_paths(source, module, children) if (target := _longest(path, sources)) != module
        }
    return graph


def _rust_module(path: Path) -> str:
    parts = path.relative_to(RUST).with_suffix("").parts
    if parts[-1] in ("mod", "lib"):
        parts = parts[:-1]
    return "::".join(("crate", *parts))


def _bare_rust(source: str) -> str:
    """Without comments, strings and test modules."""
    source = re.sub(RUST_TEXT, " ", source, flags=re.DOTALL)
    while found := re.search(r"#\[cfg\(test\)\]\s*(?:pub\s+)?(?:mod\s+\w+\s*(?=\{)|[^{;]*;)", source):
        end = _closing(source, found.end()) if source[found.end() : found.end() + 1] == "{" else found.end()
        source = source[: found.start()] + source[end:]
    return source


def _closing(source: str, opening: int) -> int:
    """The place behind the brace that closes the one at `opening`."""
    depth = 0
    for place in range(opening, len(source)):
        depth += {"{": 1, "}": -1}.get(source[place], 0)
        if depth == 0:
            return place + 1
    raise ValueError("an unclosed brace")


def _rust_paths(source: str, module: str, children: set[str]) -> Iterator[str]:
    """Every path of the crate that the source names, from `crate::` on."""
    uses = re.compile(r"\buse\s+([^;]+);")
    trees = [path for found in uses.finditer(source) for path in _use_tree(re.sub(r"\s+", " ", found[1]).strip())]
    rest = uses.sub(" ", source)
    named = [re.sub(r"\s", "", found[0]) for found in re.finditer(r"\b\w+(?:\s*::\s*\w+)+", rest)]
    for path in (*trees, *named):
        head, _, tail = path.partition("::")
        if head == "crate":
            yield path
        elif head == "self":
            yield f"{module}::{tail}"
        elif head == "super":
            above = module.rpartition("::")[0]
            while tail.startswith("super::"):
                above, tail = above.rpartition("::")[0], tail.removeprefix("super::")
            yield f"{above}::{tail}"
        elif f"{module}::{head}" in children:
            yield f"{module}::{path}"


def _use_tree(tree: str) -> list[str]:
    """`a::{b, c::{d, self}}` as a::b, a::c::d and a::c."""
    opening = tree.find("{")
    if opening < 0:
        path = tree.split(" as ")[0].strip()
        return [path.removesuffix("::self").removesuffix("::*")]
    inner, depth, parts, begin = tree[opening + 1 : _closing(tree, opening) - 1], 0, [], 0
    for place, letter in enumerate(inner):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append(inner[begin:place])
            begin = place + 1
    parts.append(inner[begin:])
    return [path for part in parts if part.strip() for path in _use_tree(tree[:opening] + part.strip())]


def _longest(path: str, known: Mapping[str, str]) -> str:
    while path not in known:
        path = path.rpartition("::")[0]
    return path


def lines_of(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions() -> list[tuple[int, str]]:
    """Lines of every function and its place, longest first."""
    found = [(lines, f"{_short(path)} {name}") for path in python_files() for lines, name in _python_functions(path)]
    found += [(lines, f"{_short(path)} {name}") for path in rust_files() for lines, name in _rust_functions(path)]
    return sorted(found, reverse=True)


def _python_functions(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1, node.name


def _rust_functions(path: Path) -> Iterator[tuple[int, str]]:
    """By rustfmt's layout: a function ends at the closing brace of its own indentation, or on its first line."""
    source = path.read_text(encoding="utf-8")
    several = re.MULTILINE | re.DOTALL
    for head in re.finditer(r"^( *)(?:pub(?:\([a-z]+\))? )?(?:const |unsafe |async )*fn (\w+)", source, several):
        body = re.compile(rf"[^\n{{]*;$|[^\n]*\}}$|.*?^{head[1]}\}}$", several).match(source, head.end())
        yield (body[0] if body else "").count("\n") + 1, head[2]


def _short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def figures() -> dict[str, object]:
    """What the house measures at this commit."""
    files = [*python_files(), *rust_files()]
    lines: dict[str, int] = defaultdict(int)
    for path in (*files, PACKAGE / "_core.pyi"):
        lines["kernels" if path.parent == KERNELS else path.suffix[1:].replace("pyi", "py")] += lines_of(path)
    longest = sorted(((lines_of(path), _short(path)) for path in files), reverse=True)
    return {
        "files in training/": len(list((PACKAGE / "training").glob("*.py"))),
        "import circles": circles(import_graph()),
        "import circles in Rust": circles(rust_graph()),
        "longest files": longest[:5],
        "longest functions": functions()[:5],
        "lines of product code": {"python": lines["py"], "rust": lines["rs"], "kernels": lines["kernels"]},
        "lines in all": sum(lines.values()),
    }


if __name__ == "__main__":
    for name, value in figures().items():
        print(f"{name}: {value}")
    sys.exit(0)
