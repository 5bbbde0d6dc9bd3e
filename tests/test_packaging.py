"""What is shipped: the sdist builds a wheel, and the wheel has everything and imports where the checkout is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = """
import importlib, pathlib, sys
import varalign
home = pathlib.Path(varalign.__file__).parent
assert home.is_relative_to(sys.argv[1]), home
for path in sorted(home.rglob("*.py")):
    parts = path.relative_to(home).with_suffix("").parts
    name = ".".join(("varalign", *(parts[:-1] if parts[-1] == "__init__" else parts)))
    if name != "varalign.kernels" and (not name.startswith("varalign.kernels.") or sys.platform == "linux"):
        importlib.import_module(name)
print(varalign.__version__)
"""


def run(*command: str, **options: object) -> str:
    found = subprocess.run(command, capture_output=True, text=True, timeout=900, **options)  # type: ignore[call-overload]
    assert found.returncode == 0, found.stderr[-4000:]
    return str(found.stdout)


@pytest.mark.long
def test_sdist_to_wheel_to_another_place(tmp_path: Path) -> None:
    if shutil.which("cargo") is None:
        pytest.skip("no cargo on this machine")
    pytest.importorskip("maturin", reason="maturin is not installed: pip install '.[test]'")
    environment = {**os.environ, "CARGO_TARGET_DIR": str(ROOT / "target" / "packaging")}
    environment.pop("PYTHONPATH", None)

    run(sys.executable, "-m", "maturin", "sdist", "--out", str(tmp_path), cwd=ROOT, env=environment)
    (sdist,) = tmp_path.glob("varalign-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"Cargo.toml", "Cargo.lock", "pyproject.toml", "rust/src/lib.rs", "LICENSE", "README.md"} <= names
    assert not any(name.startswith(("data/", "runs/", "target/")) or name.endswith(".so") for name in names)

    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(
        *pip,
        "wheel",
        str(sdist),
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        cwd=tmp_path,
        env=environment,
    )
    (wheel,) = tmp_path.glob("varalign-*.whl")
    assert "-cp310-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    modules = {path.relative_to(ROOT / "python").as_posix() for path in (ROOT / "python" / "varalign").rglob("*.py")}
    assert modules <= inside, modules - inside
    kernels = {f"varalign/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}
    assert kernels <= inside and "varalign/py.typed" in inside and "varalign/_core.pyi" in inside
    assert any(name.startswith("varalign/_core.") and name.endswith((".so", ".pyd")) for name in inside)

    site = tmp_path / "site"
    run(*pip, "install", "--no-deps", "--target", str(site), str(wheel), cwd=tmp_path, env=environment)
    version = run(sys.executable, "-c", IMPORTS, str(site), cwd=tmp_path, env={**environment, "PYTHONPATH": str(site)})
    assert version.strip() == wheel.name.split("-")[1]
    assert (site / "bin" / "varalign").exists() or (site / "Scripts").exists()
