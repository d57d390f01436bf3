"""The reference is what the methods say of themselves."""

from __future__ import annotations

import re

import pytest

from selfdistill.cli.app import main
from selfdistill.methods import METHODS
from selfdistill.methods.reference import section


@pytest.mark.parametrize("name", METHODS)
def test_every_knob_is_described_and_every_method_names_its_source(name: str) -> None:
    for hyperparameter, field in METHODS[name].model_fields.items():
        assert hyperparameter == "name" or (field.description or "").endswith(".")
    documented = METHODS[name].__doc__ or ""
    assert name in ("sft", "sdft") or re.search(r"\d{4}\.\d{5}", documented)


def test_limits_and_defaults_are_those_that_are_enforced() -> None:
    text = "\n".join(section("antisd"))
    assert "| `gate_ratio` | `0.93` | The gate closes when H falls below this share of H_warm. (> 0, ≤ 1) |" in text
    assert "- *teacher*: context `sibling_or_solution_verdict`, live weights" in text


def test_an_unknown_method_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["methods", "antsd"])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("selfdistill: unknown method 'antsd'; did you mean 'antisd'?")
