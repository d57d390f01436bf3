"""What is refused before torch is imported is what the methods' classes refuse, in the same words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from selfdistill.config.hyperparameters import METHOD_KEYS, check_hyperparameters
from selfdistill.errors import ConfigError
from selfdistill.methods import build_method
from selfdistill.methods.base import ReverseKL, TopK

PLAIN: tuple[Any, ...] = ("abc", "", "1", "true", "live", -1, 0, 1, 2, 99, -0.5, 0.5, 1.5, math.nan, math.inf)
TABLES: tuple[Any, ...] = (
    True,
    None,
    [1],
    {},
    {"kind": "snapshot"},
    {"kind": "snapshot", "every": 0},
    {"kind": "snapshot", "every": 3},
    {"kind": "snapshot", "every": 3, "path": "x"},
    {"kind": "snapsot", "every": 3},
    {"every": "many"},
    {"kind": "external"},
    {"kind": "external", "path": 3},
    {"kind": "external", "path": "x", "every": 1},
    {"kind": "forward_kl", "clip": 0.1},
    {"kind": "forward_kl", "support": "full"},
    {"kind": "reverse_kl", "support": {"kind": "full", "k": 3}},
    {"kind": "reverse_kl", "support": {"kind": "top_k"}},
    {"kind": "reverse_kl", "support": {"kind": "top_k", "k": 0}},
    {"kind": "reverse_kl", "support": {"kind": "top_k", "k": 2, "chosen_by": "union"}},
    {"kind": "jensen_shannon", "teacher_weight": 1.0},
    {"kind": "jensen_shannon", "teacher_weight": "half", "support": {"kind": "topk"}},
    {"kind": "clipped_forward_kl", "clip": -1},
    {"kind": "kl"},
)


def given() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, keys in METHOD_KEYS.items():
        yield from ((name, {key: value}) for key in keys for value in PLAIN + TABLES)
        yield from ((name, {f"{key}s": 1}) for key in (*keys, "nam"))
    for name in ("grpo", "rlsd", "sdpg"):
        yield from ((name, {"ratio": ratio, "dual_clip": 3}) for ratio in ("token", "sequence", "weight"))
        yield name, {"ratio": "weight", "dual_clip": 0.5}


def sentence(check: Any, name: str, hyperparameters: dict[str, Any]) -> str | None:
    try:
        check(name, hyperparameters)
    except ConfigError as error:
        return str(error)
    return None


def test_every_value_has_the_same_sentence_before_torch_and_from_the_methods_class() -> None:
    refused = 0
    for name, hyperparameters in given():
        early = sentence(check_hyperparameters, name, hyperparameters)
        assert early == sentence(build_method, name, hyperparameters), (name, hyperparameters)
        refused += early is not None
    assert refused > 5000


@pytest.mark.parametrize(
    ("name", "hyperparameters", "message"),
    [
        ("rlsd", {"strength": "abc"}, "method.strength: Input should be a valid number, unable to parse string"),
        ("rlsd", {"strength": -1}, "method.strength: Input should be greater than or equal to 0 (got -1)"),
        ("grpo", {"dual_clip": 3, "ratio": "weight"}, "dual_clip bounds the ratio of each token"),
        ("opsd", {"weights": {"kind": "snapshot", "every": 0}}, "method.weights: a snapshot is taken"),
        ("opsd", {"weights": {"kind": "external"}}, "method.weights.path: Field required (got {'kind': 'external'})"),
        (
            "opsd",
            {"weights": "emaa"},
            "'frozen' or 'ema', or a table of kind 'snapshot' or 'external' or 'server' (got 'emaa')",
        ),
        ("credit", {"contrasts": 10**9}, "method.contrasts: Input should be less than or equal to 64"),
        (
            "opsd",
            {"divergence": {"kind": "forward_kl", "clip": 1}},
            "unknown key method.divergence.clip for method 'opsd' (got 1)",
        ),
        (
            "opsd",
            {"divergence": {"kind": "reverse_kl", "support": {"kind": "top_k", "k": 0}}},
            "method.divergence.support.k: Input should be greater than or equal to 1 (got 0)",
        ),
    ],
)
def test_the_sentence_names_the_key_as_it_is_written(name: str, hyperparameters: dict[str, Any], message: str) -> None:
    assert message in (sentence(build_method, name, hyperparameters) or "")


def test_tables_may_be_objects_of_the_methods_own_classes() -> None:
    hyperparameters = {"divergence": ReverseKL(support=TopK(k=3))}
    check_hyperparameters("sdpo", hyperparameters)
    assert build_method("sdpo", hyperparameters) == build_method(
        "sdpo", {"divergence": {"kind": "reverse_kl", "support": {"kind": "top_k", "k": 3}}}
    )
