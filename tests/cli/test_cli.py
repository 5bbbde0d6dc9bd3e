"""The command line: how options may be written, what wrong input prints, and which code the program leaves with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from varalign.cli import main
from varalign.cli.program import build_parser, dashed
from varalign.data.sample import write_sample


def parsed(line: str) -> dict[str, object]:
    return vars(build_parser().parse_args(dashed(line.split())))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train --use_pretrained True", True),
        ("train --use_pretrained False", False),
        ("train --use_pretrained=true", True),
        ("train --use-pretrained", True),
        ("train --no-use-pretrained", False),
        ("train --no_use_pretrained", False),
    ],
)
def test_the_switch_takes_every_form(line: str, expected: bool) -> None:
    assert parsed(line)["use_pretrained"] is expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train --decoded-cache", "disk"),
        ("train --decoded-cache disk --epochs 2", "disk"),
        ("train --decoded_cache True", True),
        ("train --decoded-cache off", False),
        ("train --no-decoded-cache", False),
    ],
)
def test_a_choice_that_was_a_switch_takes_both_forms(line: str, expected: object) -> None:
    assert parsed(line)["decoded_cache"] == expected


def test_underscores_and_dashes_name_the_same_option_and_values_keep_theirs() -> None:
    assert parsed("train --batch_size 4 --out a_b") == parsed("train --batch-size=4 --out=a_b")
    assert parsed("train --out=a_b")["out"] == "a_b"


def test_options_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    """`--caption` could be `--captions`, `--caption-column` or `--captions-per-image`."""
    for line in ("train --caption a.csv", "train --captions-per 2", "data check DIR --image photos"):
        with pytest.raises(SystemExit) as caught:
            build_parser().parse_args(line.split())
        assert caught.value.code == 2
        assert "unrecognized arguments" in capsys.readouterr().err


def test_a_folder_is_checked_and_measured_as_the_user_says_it_is_read(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (image_folder / "captions.txt").read_text().replace("image,caption", "foto;wort").replace(".jpg,", ".jpg;")
    (tmp_path / "a.csv").write_text(text)
    reading = ["--captions", str(tmp_path / "a.csv"), "--images", str(image_folder / "Images")]
    reading += ["--separator", "semicolon", "--image-column", "foto", "--caption-column", "wort", "--json"]
    main(["data", "check", str(image_folder), *reading])
    checked = json.loads(capsys.readouterr().out)
    assert checked["captions_file"] == str(tmp_path / "a.csv") and not checked["problems"]
    assert main(["data", "stats", str(tmp_path), "--draw", "3", "--size", "16", *reading]) == 0
    assert json.loads(capsys.readouterr().out)["captions"] == checked["captions"]


def test_perplexities_as_the_papers_script_has_them() -> None:
    assert parsed("visualize --perplexities 5 10 30 50")["perplexities"] == [5, 10, 30, 50]


def test_only_what_is_given_is_passed_on() -> None:
    assert set(parsed("train --epochs 3")) == {"epochs", "handler"}


def refused(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 2) -> str:
    """Run a command line that must fail with `code`; returns its one message."""
    try:
        found = main(argv)
    except SystemExit as leave:
        found = leave.code  # type: ignore[assignment]
    output = capsys.readouterr()
    assert found == code, output
    lines = [line for line in output.err.splitlines() if line.startswith("varalign: error: ")]
    assert output.out == "" and len(lines) == 1 and "Traceback" not in output.err, output
    return lines[0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train --epochs -1", "--epochs is -1, but must be at least 0"),
        ("train --epochs 1.5", "argument --epochs: invalid int value: '1.5'"),
        (
            "train --schedule best",
            "--schedule 'best' is not known: it takes dwa, entropy, famo, fixed,",
        ),
        ("train --use-pretrained maybe", "takes True or False, not 'maybe'"),
        ("train --data nowhere", "nowhere"),
        ("train --features nowhere.safetensors", "nowhere.safetensors"),
        ("train --config nowhere.toml", "nowhere.toml"),
        ("train --resume nowhere", "nowhere: no such run folder"),
        ("train --resume nowhere --epochs 3", "leave out --epochs"),
        ("train --device abacus", "--device 'abacus' is not known"),
        ("train --image-encoder resnet99", "resnet99"),
        ("eval nowhere", "nowhere: no such run folder"),
        ("eval --zero-shot clip:ViT-B-32@openai", "--zero-shot SPEC takes --data DIR"),
        ("eval run --seed 3", "--seed belongs to --zero-shot"),
        ("study --features f --axis seed 1 2 --seeds 2", "--axis seed and --seeds both say which seeds there are"),
        ("study --features f --axis fraction 1 --part 5/4", "--part 5/4: wanted I/N with I from 1 to N, such as 1/4"),
        ("study --features f --axis fraction 1 --part 1/2 --report", "--part runs cells and --report none"),
        ("study --features f --axis fraction 1 --axis fraction 5", "--axis fraction stands twice: say it once"),
        ("visualize", "no run under runs/"),
        ("embed nowhere --out a.npz", "nowhere: no such run folder"),
        ("search", "search takes [RUN]"),
        ("data check nowhere", "nowhere"),
        ("data check --data nowhere", "nowhere: no such folder"),
        ("data check", "data takes one folder: DIR, or --data DIR"),
        ("search nowhere/run dogs", "nowhere/run: no such run folder"),
        ("dance", "invalid choice: 'dance'"),
        ("", "required: COMMAND"),
    ],
)
def test_wrong_use_prints_one_line_and_leaves_with_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, *line.split())
    assert not any(tmp_path.glob("runs/*")), "a refused command leaves no run behind"


def folder(tmp_path: Path, captions: str, images: dict[str, bytes]) -> str:
    (tmp_path / "Images").mkdir()
    (tmp_path / "captions.txt").write_text(captions)
    for name, data in images.items():
        (tmp_path / "Images" / name).write_bytes(data)
    return str(tmp_path)


def test_data_check_leaves_out_what_is_missing_as_training_does(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_sample(tmp_path / "sample", images=12, size=32)
    with (tmp_path / "sample" / "captions.txt").open("a") as file:
        file.write("gone.jpg,A dog\n")
    words = ["data", "check", "--data", str(tmp_path / "sample")]
    assert main(words) == 1 and "training would fail" in capsys.readouterr().out
    assert main([*words, "--skip-missing"]) == 0
    said = capsys.readouterr().out
    assert "gone.jpg" in said and "training would fail" not in said


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_a_shell_completes_commands_options_and_choices(capsys: pytest.CaptureFixture[str], shell: str) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in ("visualize", "schedule", "nt-xent", "imagefolder"))


def test_an_empty_captions_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "captions.txt" in refused(capsys, "train", "--data", folder(tmp_path, "", {"a.jpg": b"x"}))


def test_captions_that_name_no_image_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    message = refused(capsys, "train", "--data", folder(tmp_path, "image,caption\nb.jpg,A dog\n", {"a.jpg": b"x"}))
    assert "b.jpg" in message and "captions.txt" in message


def test_images_that_are_texts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in range(40)]
    data = folder(
        tmp_path, "image,caption\n" + "".join(f"{n},dog {n}\n" for n in names), {n: n.encode() for n in names}
    )
    message = refused(capsys, "train", "--data", data, "--out", str(tmp_path / "run"), "--batch-size", "8", code=1)
    assert "cannot be read, more than --max-bad 0.01 allows" in message
    assert main(["data", "check", data]) == 1
    assert "40" in capsys.readouterr().out


def test_a_run_folder_of_another_program(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "of another program" in refused(capsys, "eval", str(tmp_path))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        main(["--version"])
    assert leave.value.code == 0 and capsys.readouterr().out.startswith("varalign ")


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_idle_threads_sleep_unless_the_user_says_otherwise(
    given: str | None, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    with pytest.raises(SystemExit):
        main(["--version"])
    assert os.environ["OMP_WAIT_POLICY"] == expected


def test_the_installed_command_is_this_one() -> None:
    found = subprocess.run([sys.executable, "-m", "varalign", "--version"], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0 and found.stdout.startswith("varalign ")
