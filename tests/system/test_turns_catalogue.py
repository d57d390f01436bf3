"""Every method of the catalogue runs on episodes: two steps of Countdown in turns, or a refusal by name."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from selfdistill.config.run import RunConfig, parse_config
from selfdistill.errors import ConfigError
from selfdistill.files.records import read_rollouts
from selfdistill.methods import METHODS, build_method
from selfdistill.methods.grpo import GRPO
from selfdistill.training.problem import method_of
from support.runs import METHODS as ASKED
from support.runs import lines, open_run, train
from support.tiny import save_brief_model

LETS_ANOTHER_ROLE_SAMPLE = ("pbsd", "pbsd_reward", "hdpo")
TURNS = {"kind": "group_in_group", "discount": 0.9}
pytestmark = pytest.mark.usefixtures("no_page")


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_brief_model(tmp_path_factory.mktemp("model"), positions=1024)


def config(model: Path, method: Mapping[str, Any], kind: str = "support.turns:Graded") -> RunConfig:
    raw: dict[str, Any] = {
        "steps": 2,
        "model": {"path": str(model)},
        "task": {"kind": kind},
        "method": dict(method),
        "sampling": {"prompts": 2, "completions": 3, "max_tokens": 8},
        "optimiser": {"learning_rate": 0.01},
        "evaluation": {"every": 2, "problems": 1, "samples": 1},
        "checkpoint": {"every": 2},
    }
    return parse_config(raw, "a test")


def asked(name: str) -> dict[str, Any]:
    """The method's table, with advantages of the turns where it has them and hints that every completion has."""
    table = ASKED[name]
    table = {"name": table} if isinstance(table, str) else dict(table)
    kind = METHODS[table["name"]]
    if issubclass(kind, GRPO):
        table["turn_advantage"] = TURNS
    if "context" in kind.model_fields and kind.model_fields["context"].default.startswith(("sibling", "random")):
        table["context"] = "solution"
    return table


@pytest.mark.parametrize("name", [name for name in ASKED if ASKED[name] not in LETS_ANOTHER_ROLE_SAMPLE])
def test_every_method_trains_on_the_models_own_tokens_of_episodes(name: str, brief: Path, tmp_path: Path) -> None:
    assert train(config(brief, asked(name)), tmp_path / "run")["finished"]
    rollouts = list(read_rollouts(tmp_path / "run" / "rollouts.jsonl"))
    for line in lines(tmp_path / "run" / "metrics.jsonl"):
        assert math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"])
        # A step of one update scores what it samples: each own token once, and no token of the environment.
        own = sum(len(r.ids) for r in rollouts if r.step == line["step"])
        assert 0 < line["tokens"] <= own and line["budget"]["trained"] == line["tokens"]
        if line["left_out"] == 0:
            assert line["tokens"] == own
    if method_of(config(brief, asked(name))).on_policy:
        assert len(rollouts) == 12 and sum(len(r.episode.turns) for r in rollouts if r.episode) > 12
        assert sum(len(turn.ids) for r in rollouts if r.episode for turn in r.episode.turns) > 0


@pytest.mark.parametrize("name", LETS_ANOTHER_ROLE_SAMPLE)
def test_a_method_that_cannot_is_refused_by_name(name: str, brief: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"method '{name}' lets another role sample"):
        open_run(config(brief, {"name": name}), tmp_path / "run")


def test_no_method_of_the_catalogue_is_left_out() -> None:
    named = {table if isinstance(table, str) else table["name"] for table in ASKED.values()}
    assert named == set(METHODS)
    others = {name for name in METHODS if tuple(build_method(name, {}).sampling_roles()) != ("student",)}
    assert others == set(LETS_ANOTHER_ROLE_SAMPLE)


def test_turns_are_not_compared_where_answers_are_single(brief: Path, tmp_path: Path) -> None:
    own = config(brief, {"name": "grpo", "turn_advantage": TURNS}, "countdown")
    sentence = "method 'grpo' compares turns (method.turn_advantage), and task 'countdown' has single answers"
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        open_run(own, tmp_path / "run")
    assert not (tmp_path / "run").exists()
