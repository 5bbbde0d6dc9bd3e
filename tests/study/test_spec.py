"""The study file: what it may say, and that an error names the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from varalign.study.grid import conditions
from varalign.study.spec import StudyError, at_fraction, make_study, read_study

GOOD: dict[str, Any] = {"features": "f.safetensors", "axes": {"schedule": ["entropy"], "fraction": [10, 100]}}


def test_controls_and_defaults_join() -> None:
    study = make_study(GOOD)
    assert study.axes["schedule"] == ("entropy", "variance", "fixed", "fixed-tuned", "random", "replay")
    assert study.axes["noise"] == ("none",)
    assert study.seeds_at(10) == [0, 1, 2, 3, 4]
    assert list(study.baselines) == [{"schedule": "fixed-tuned"}]
    two = make_study({**GOOD, "axes": {**GOOD["axes"], "start": ["random", "closed-form"]}})
    assert two.baselines[0] == {"start": "random", "schedule": "fixed-tuned"}


def test_fixed_tuned_goes_where_no_weight_is_tuned() -> None:
    study = make_study({**GOOD, "tune": [{"lr": [1e-3, 1e-2]}]})
    assert study.axes["schedule"] == ("entropy", "variance", "fixed", "random", "replay")
    assert list(study.baselines) == [{"schedule": "fixed"}]
    some = make_study({**GOOD, "tune": [{"noise": "none", "fixed_weight": [0.3, 0.5]}]})
    assert "fixed-tuned" in some.schedules({"fraction": 10.0, "noise": "none"})
    assert "fixed-tuned" not in some.schedules({"fraction": 10.0, "noise": "swap-images=0.2"})


def test_siglip_has_fixed_weights_alone_wherever_it_is_named() -> None:
    study = make_study({**GOOD, "options": {"loss": {"10": "clip", "100": "siglip"}}})
    assert study.schedules({"fraction": 100.0, "noise": "none"}) == ("fixed", "fixed-tuned")
    assert study.schedules({"fraction": 10.0, "noise": "none"}) == study.axes["schedule"]
    assert study.schedules({"fraction": 10.0, "noise": "none", "loss": "siglip"}) == ("fixed", "fixed-tuned")


def test_values_by_fraction() -> None:
    study = make_study({**GOOD, "axes": {**GOOD["axes"], "seed": {"1": 20, "100": [5, 6]}}})
    assert len(study.seeds_at(10)) == 20
    assert study.seeds_at(100) == [5, 6]
    assert at_fraction({10.0: "a", 100.0: "b"}, 1.0) == "a"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sedes": 3}, "unknown key 'sedes'"),
        ({"features": 3}, "features takes a path"),
        ({"data": "d"}, "one of features .* and data"),
        ({"axes": {"shedule": ["variance"]}}, "axes.shedule is no axis; did you mean 'schedule'"),
        ({"axes": {"schedule": ["varianse"]}}, "axes.schedule: unknown schedule 'varianse'; did you mean 'variance'"),
        ({"axes": {"same_caption": ["positive", "distinct"]}}, "axes.same_caption is no axis .*: put it in options"),
        ({"axes": {"fraction": [0]}}, "axes.fraction: wanted per cent"),
        ({"axes": {"fraction": [10, 10]}}, "axes.fraction takes at least one value and none twice"),
        ({"axes": {"noise": ["swap=0.1"]}}, "axes.noise: --noise: wanted kinds"),
        ({"axes": {"seed": -1}}, "axes.seed: wanted a count"),
        ({"axes": {"seed": {"x": 3}}}, "axes.seed: 'x' is no fraction"),
        ({"axes": {"seed": {"nan": 3}}}, "axes.seed: 'nan' is no fraction"),
        ({"axes": {"seed": {}}}, "axes.seed: wanted a value for at least one fraction"),
        ({"axes": {"seed": {"10": {"100": 3}}}}, "axes.seed: wanted a count"),
        ({"axes": {"seed": 10**12}}, "axes.seed: wanted a count"),
        ({"axes": {"schedule": [3]}}, "axes.schedule: unknown schedule 3"),
        ({"options": {"lr": {}}}, "options.lr: wanted a value for at least one fraction"),
        ({"tune": [{"lr": {}}]}, r"tune\[0\].lr: wanted a value for at least one fraction"),
        ({"axes": {"lr": ["fast"]}}, "axes.lr: --lr takes a number"),
        ({"options": {"epoch": 3}}, "options: unknown option 'epoch'; did you mean 'epochs'"),
        ({"options": {"epochs": -1}}, "options.epochs: --epochs is -1"),
        ({"options": {"seed": 1}}, "options.seed is set by the study"),
        ({"options": {"evaluations": 3}}, "evaluations is a key of the whole study"),
        ({"tune": [{"lr": 1e-3}]}, r"tune\[0\].lr: wanted a list"),
        ({"tune": [{"lr": [1e-3]}, {"dropout": [2.0]}]}, r"tune\[1\].dropout: --dropout is 2.0"),
        ({"axes": {"schedule": ["fixed-tuned"]}, "tune": []}, "'fixed-tuned' needs a .*fixed_weight, or leave it out"),
        ({"tune_seeds": 0}, "tune_seeds takes a whole number of at least 1"),
        ({"baseline": {"schedule": "spread"}}, "baseline.schedule = 'spread' is not among"),
    ],
)
def test_an_error_names_the_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        make_study({**GOOD, **change})


PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
KEYS = st.sampled_from(("lr", "schedule", "fraction", "noise", "seed", "start", "loss", "fixed_weight", "10", "x"))
VALUES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


@given(st.dictionaries(st.sampled_from(["axes", "options", "tune", "tune_seeds", "baseline", "data"]), VALUES))
@settings(max_examples=300, deadline=None)
def test_whatever_a_file_holds_it_is_a_study_or_an_error_that_names_the_key(values: dict[str, Any]) -> None:
    try:
        study = make_study({"features": "f.safetensors", **values})
    except StudyError as error:
        assert str(error).startswith("study: ")
        return
    for condition in conditions(study, "", lambda _: True):
        assert len(list(condition.possible())) > 0
        assert study.seeds_at(condition.axes["fraction"])


def test_a_file_with_options_over_it(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text('features = "f"\n[axes]\nfraction = [1]\nseed = 3\n[[tune]]\nlr = [1e-3, 3e-3]\n')
    study = read_study(file, {"axes": {"seed": 2}})
    assert study.axes["fraction"] == (1.0,)
    assert study.seeds_at(1) == [0, 1]
    assert study.tune == ({"lr": [1e-3, 3e-3]},)
    file.write_text("features = ")
    with pytest.raises(StudyError, match="study.toml: not valid TOML"):
        read_study(file)
    with pytest.raises(StudyError, match="absent.toml: cannot be read: No such file or directory$"):
        read_study(tmp_path / "absent.toml")
