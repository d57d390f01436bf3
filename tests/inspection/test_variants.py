"""Methods to look at: labels, hyperparameters from overrides and configs, and one sentence for each mistake."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from selfdistill.errors import ConfigError
from selfdistill.inspection.plan import DEFAULT_METHODS, choose_methods, hyperparameters
from selfdistill.methods import build_method


def test_unset_are_the_usual_ones_as_they_come() -> None:
    methods, rest = choose_methods(None, [], ["task.difficulty=easy"])
    assert tuple(methods) == DEFAULT_METHODS
    assert all(method == build_method(name, {}) for name, method in methods.items())
    assert rest == ["task.difficulty=easy"]


def test_variants_stand_side_by_side_and_each_override_reaches_its_own() -> None:
    overrides = ["antisd.strength=0.1", "task.difficulty=easy", "strong.strength = 2", "kl.divergence.kind=forward_kl"]
    methods, rest = choose_methods(["antisd", "strong=antisd", "kl=opsd"], [], overrides)
    assert methods == {
        "antisd": build_method("antisd", {"strength": 0.1}),
        "strong": build_method("antisd", {"strength": 2}),
        "kl": build_method("opsd", {"divergence": {"kind": "forward_kl"}}),
    }
    assert rest == ["task.difficulty=easy"]
    assert hyperparameters(methods, ["strong"]) == {
        "strong": {"method": "antisd", "hyperparameters": {"strength": 2.0}}
    }


def test_a_config_lends_its_method_under_its_name_and_leaves_the_usual_ones_out(tmp_path: Path) -> None:
    arm = tmp_path / "arm.v2.toml"
    arm.write_text('steps = 7\nmethod.name = "credit"\nmethod.strength = 0.5\n', encoding="utf-8")
    run = tmp_path / "mine"
    run.mkdir()
    (run / "config.json").write_text('{"method": {"name": "antisd", "strength": 0.2}}', encoding="utf-8")
    methods, rest = choose_methods(None, [str(arm), str(run), "countdown-sd"], ["arm.v2.contrasts=2"])
    assert list(methods) == ["arm.v2", "mine", "countdown-sd"]
    assert methods["arm.v2"] == build_method("credit", {"strength": 0.5, "contrasts": 2})
    assert methods["mine"] == build_method("antisd", {"strength": 0.2})
    assert rest == []


@pytest.mark.parametrize(
    ("named", "overrides", "sentence"),
    [
        (
            ["antisd"],
            ["antisd.strenght=1"],
            "unknown key method.strenght for method 'antisd'; did you mean 'strength'?",
        ),
        (["strong=antisd"], ["strong.strength=no"], "strong: method.strength: "),
        (["strong=antisdd"], [], "strong: unknown method 'antisdd'; did you mean 'antisd'? "),
        (
            ["antisd"],
            ["method.strength=1"],
            "--set method.strength=1: write LABEL.hyperparameter=value, with one of ",
        ),
        (["antisd"], ["credit.contrast=1"], "--set credit.contrast=1: write LABEL.hyperparameter=value, with one of"),
        (["antisd"], ["antisd.name=sd"], "--set antisd.name=sd: the method of a label is named by --methods, as in "),
        (["a=antisd", "a=sd"], [], "two methods are labelled 'a': write another label, as in other=sd"),
        (["task=antisd"], [], "a method cannot be labelled 'task': --set would take it for that key of a config"),
        (["=antisd"], [], "--methods '=antisd': write NAME or LABEL=NAME, for example strong=antisd"),
        (["antisd="], [], "--methods 'antisd=': write NAME or LABEL=NAME"),
    ],
)
def test_what_cannot_be_is_one_sentence(named: Sequence[str], overrides: Sequence[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        choose_methods(named, [], overrides)
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)
