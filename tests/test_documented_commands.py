"""Every command in README.md, CONTRIBUTING.md and docs/ is run whole, as a process, on small data; so is Python code.

What only stands for something (RUN, FILE, DIR, a hub's weights) is replaced by what is there, and training is made
short. A command that cannot run here is in `PARSED` with the reason; its options are parsed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from varalign.cli.program import COMMANDS, build_parser, dashed

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PARSED: dict[str, str] = {
    "varalign serve RUN --images DIR": "runs until it is stopped; tests/cli/test_serve.py starts it",
    "varalign serve RUN --images DIR --port 8000": "likewise",
    "varalign serve RUN --gallery gallery.safetensors --index faiss": "likewise",
    "varalign train --data 's3://bucket/shard-{000000..000099}.tar'": "needs a network",
}
"""Commands of the pages that need a network, several nodes or a GPU, or do not end, each with the reason."""

SAID_BESIDE = (
    "varalign search RUN --image a.jpg",
    "varalign diagnose RUN",
    "varalign diagnose --data DIR --image-encoder clip:ViT-B-32@openai --text-encoder bert:bert-base-uncased",
    "varalign embed RUN --features --out towers.safetensors",
    "varalign convert weights.pt converted.safetensors",
    "varalign data sample drawn",
    "varalign train --data DIR --lora 2 --use-pretrained",
    "varalign train --data DIR --unfreeze 1 --use-pretrained",
    "varalign train --config runs/20260101-120000/config.json",
)
"""Commands that the pages describe in words, or in the comment of another."""

VALUES = {
    "RUN": "runs/20260101-120000",
    "FILE": "features.safetensors",
    "DIR": "data/flickr8k",
    "S": "0",
    "600": "50",
    "clip:ViT-B-32@openai": "clip:tiny@clip",
    "bert:bert-base-uncased": "bert:bert",
}
TRAIN = "--epochs 1 --batch-size 10 --threads 1 --device cpu"
STUDY = {"fraction": "100", "noise": "none", "start": "random closed-form", "schedule": "fixed", "loss": "clip"}
FENCES = re.compile(r"^```(\S*)(?: [^\n]*)?\n(.*?)^```", re.M | re.S)


def commands_of(page: str) -> list[str]:
    r"""The program's command lines in a Markdown page: lines of fenced blocks, and code between backticks.

    >>> commands_of("Run `varalign eval`:\n```\ncd x && varalign train --epochs 2  # long\n```")
    ['varalign train --epochs 2', 'varalign eval']
    """
    found = []
    for _, block in FENCES.findall(page):
        for line in block.replace("\\\n", " ").splitlines():
            found += re.sub(r"\s+# .*", "", line).split("&&")
    found += re.findall(r"`([^`\n]+)`", FENCES.sub("", page))
    return [line.strip() for line in dict.fromkeys(found) if re.match(r"\s*(python -m )?varalign \S", line)]


def words_of(line: str, number: int) -> list[str]:
    """The words after the program's name, made short, with values for what only stands for something."""
    line = line.removeprefix("python -m ").removeprefix("varalign ")
    words = dashed(shlex.split(re.sub(r"\[([^]]*)\]", r"\1", line)))
    for at in range(1, len(words)):
        places = {"--out": f"out-{number}", "--resume": "interrupted"} if words[at].isupper() else {}
        words[at] = places.get(words[at - 1]) or VALUES.get(words[at], words[at])
    command = words[0]
    if words[1:] in (["--help"], ["--help-all"]) or "--resume" in words or command not in ("train", "study"):
        return words
    if command == "study":
        for axis, values in STUDY.items():
            if f"--axis {axis}" not in line:
                words += ["--axis", axis, *values.split()[: 1 if "--data" in words else 2]]
        more = "--seeds 1 --tune-seeds 1 --tune fixed_weight 0.4 0.6 --option epochs 1 --workers 1"
        return [*words, *more.split()]
    if "--use-pretrained" in words and "False" not in words:
        words += ["--image-encoder", "clip:tiny@clip", "--text-encoder", "bert:bert"]
    elif "--features" not in words:
        words += ["--image-size", "32"]
    return words + TRAIN.split()


LINES = list(dict.fromkeys(line for page in PAGES for line in commands_of(page.read_text())))
NAMED = [line for line in LINES if len(line.split()) == 2 and line.split()[1] not in ("train", "eval", "visualize")]
"""Names of commands in the middle of a sentence, such as `varalign convert`."""
LAUNCHED = [
    line
    for page in PAGES
    for _, block in FENCES.findall(page.read_text())
    for line in block.splitlines()
    if line.startswith("torchrun ")
]
"""Commands of several processes; those of several machines are parsed only."""
RUNS = [*(line for line in LINES if line not in PARSED and line not in NAMED), *SAID_BESIDE]
CODE = [block for page in PAGES for language, block in FENCES.findall(page.read_text()) if language == "python"]
BEFORE = """
import torch
logit_scale, loader = torch.tensor(14.0), [(torch.randn(6, 8), torch.randn(6, 8), torch.arange(6))] * 2
encode_images = encode_texts = lambda rows: torch.nn.functional.normalize(rows.requires_grad_(), dim=1)
"""


def quick(line: str) -> bool:
    """Whether a command takes about a second; the others are marked `long`."""
    trains = line.split()[1] == "train" and "--features" not in line and "--resume" not in line and "--help" not in line
    return not (trains or line.split()[1] in ("study", "visualize") or "--to " in line)


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Exit code, output and error output of the chosen commands and blocks of code."""
    if not hasattr(os, "fork"):
        pytest.skip("commands are forked from a process that has imported torch")
    chosen = {
        item.callspec.params.get("line", item.callspec.params.get("block"))
        for item in request.session.items
        if isinstance(item, pytest.Function) and "outcomes" in item.fixturenames
    }
    jobs = {line: words_of(line, number) for number, line in enumerate(RUNS) if line in chosen}
    for line in chosen.intersection(LAUNCHED):
        launcher, _, command = line.partition(" -m varalign -- ")
        started = ["-m", "torch.distributed.run", *launcher.split()[1:], "-m", "varalign", "--"]
        started += words_of(command, len(jobs) + 1000)
        jobs[line] = ["exec", f"import subprocess, sys\nsubprocess.run([sys.executable, *{started}], check=True)"]
    short = {block: block.replace("epochs=12, image_size=112", "epochs=1, image_size=32") for block in CODE}
    jobs |= {block: ["exec", BEFORE + code] for block, code in short.items() if block in chosen}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "commands" / "run.py"), str(tmp_path_factory.mktemp("place"))],
        input=json.dumps(list(jobs.values())),
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(jobs, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("line", [line if quick(line) else pytest.param(line, marks=pytest.mark.long) for line in RUNS])
def test_a_documented_command_runs(line: str, outcomes: dict[str, Any]) -> None:
    code, said, error = outcomes[line]
    assert code == 0 and said and "Traceback" not in error, (line, code, error[-2000:])


@pytest.mark.long
@pytest.mark.parametrize("line", [line for line in LAUNCHED if "--nnodes" not in line])
def test_a_documented_command_of_several_processes_runs(line: str, outcomes: dict[str, Any]) -> None:
    code, _, error = outcomes[line]
    assert code == 0, (line, error[-2000:])


@pytest.mark.long
@pytest.mark.parametrize("block", CODE, ids=lambda block: block.strip().splitlines()[0])
def test_documented_code_runs(block: str, outcomes: dict[str, Any]) -> None:
    code, _, error = outcomes[block]
    assert code == 0, error[-2000:]


def test_commands_that_cannot_run_here_are_parsed() -> None:
    for line in PARSED:
        assert line in LINES, "no page has it any more"
        build_parser().parse_args(words_of(line, 0))
    for line in LAUNCHED:
        build_parser().parse_args(words_of(line.partition(" -m varalign -- ")[2], 0))


def test_every_command_is_documented() -> None:
    documented = {line.split("varalign ")[1].split()[0] for line in LINES}
    named = {command.__name__.rpartition(".")[2].replace("evaluate", "eval") for command in COMMANDS}
    assert named <= documented


def test_commands_in_the_help_have_the_options_that_they_name() -> None:
    (commands,) = (action.choices for action in build_parser()._actions if action.choices)
    options = {name: set(one._option_string_actions) for name, one in commands.items()}
    texts = [f"{action.help} {one.description} {one.epilog}" for one in commands.values() for action in one._actions]
    for line in re.findall(r"`(?:varalign )?([a-z]+(?: --[^`]+)?)`", " ".join(texts)):
        command, *words = line.split()
        if command in options:
            assert {word for word in words if word.startswith("--")} <= options[command], line
