"""A model goes to a hub and comes back, through huggingface_hub's mixin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import varalign
from hub import standing_in

CODE = """
import json, sys
import numpy as np
import varalign
run, name, folder = sys.argv[1:]
ours = varalign.load(run, device="cpu")
url = ours.push_to_hub(name, token="hf_secret", private=True)
theirs = varalign.Aligner.from_pretrained(f"someone/{name}", token="hf_secret", device="cpu")
ours.save_pretrained(folder)
local = varalign.Aligner.from_pretrained(folder, device="cpu")
same = [np.array_equal(ours.encode(["a dog"]), other.encode(["a dog"])) for other in (theirs, local)]
try:
    varalign.Aligner.from_pretrained("someone/absent", token="hf_secret")
except Exception as error:
    said = type(error).__name__
print(json.dumps([url, same, said, str(theirs.run.path)]))
"""


def test_push_and_pull(voices: Path, tmp_path: Path) -> None:
    """In a process of its own: huggingface_hub reads HF_ENDPOINT once, when it is imported."""
    with standing_in() as hub:
        places = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        path = os.pathsep.join([str(Path(varalign.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-c", CODE, str(voices), "squares", str(tmp_path / "saved")],
            env={**os.environ, **places, "PYTHONPATH": path, "HF_HUB_OFFLINE": "0"},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    url, same, said, place = json.loads(done.stdout.splitlines()[-1])
    assert url.endswith("/someone/squares/commit/" + "a" * 40) and same == [True, True]
    assert "NotFound" in said and place.startswith(str(tmp_path / "home"))
    files = hub.repos["someone/squares"]
    assert {"README.md", "config.json", "checkpoints/best/tensors.safetensors", "bank.safetensors"} <= set(files)
    assert files["README.md"] == (tmp_path / "saved" / "README.md").read_bytes()
    assert hub.tokens == {"Bearer hf_secret"}
    assert np.all([b"/tmp/" not in content for name, content in files.items() if name.endswith((".json", ".md"))])
