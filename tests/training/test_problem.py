"""A run is built in three steps, and what needs no trainer stops before it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from selfdistill.cli.contexts import audit, describe_audit
from selfdistill.cli.teachers import measure
from selfdistill.errors import CheckpointError, ConfigError
from selfdistill.training import build
from selfdistill.training.build import assemble, build_models
from selfdistill.training.problem import build_problem, resolve
from selfdistill.training.run_folder import find_weights, load_model
from support.runs import LORA, metrics, tiny_run, train


def test_contexts_and_teachers_build_no_trainer(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise AssertionError("a trainer was built")

    monkeypatch.setattr(build, "build_trainer", refuse)
    config = tiny_run(model, "opsd")
    *_, last = describe_audit(audit(config, examples=1, completions=2))
    assert last == "2 completions scored, 0 left out of the loss"
    assert [*measure(config, problems=1, samples=1, seed=0)] == ["teacher"]


def test_a_mistake_of_the_problem_is_said_before_a_model_is_looked_for() -> None:
    nowhere = tiny_run(Path("no such model"), {"name": "sdpo", "context": "nowhere"})
    for build_it in (assemble, lambda config: build_models(build_problem(config))):
        with pytest.raises(ConfigError, match="unknown context 'nowhere'"):
            build_it(nowhere)


def test_opsd_scores_at_the_temperature_that_it_samples_at(model: Path) -> None:
    def resolved(*changes: str) -> object:
        return resolve(tiny_run(model, "opsd", *changes)).method["score_temperature"]

    assert resolved() == 1.1
    assert resolved("sampling.temperature=0.7") == 0.7
    assert resolved("sampling.temperature=0.7", "method.score_temperature=1.0") == 1.0
    assert "score_temperature" not in resolve(tiny_run(model, "sdft", "sampling.temperature=0.7")).method


def test_every_step_adds_to_the_one_before(model: Path) -> None:
    problem = build_problem(tiny_run(model, "grpo"))
    models = build_models(problem)
    assert (models.task, models.method, models.config) == (problem.task, problem.method, problem.config)
    assert models.chat.window is not None


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize("lora", [(), LORA], ids=["full", "lora"])
def test_a_run_goes_on_from_another_runs_newest_weights(lora: tuple[str, ...], model: Path, tmp_path: Path) -> None:
    train(tiny_run(model, "grpo", "steps=2", *lora), tmp_path / "grpo")
    trained, _, weights = load_model(str(tmp_path / "grpo"), tiny_run(model))
    path = weights.path
    config = tiny_run(tmp_path / "grpo", {"name": "antisd", "warmup": 1}, "steps=1", *lora)
    models = build_models(build_problem(config))
    # As trained, and named so that the origin is found from elsewhere and later.
    assert models.config.model.path == str(Path(path).absolute()) and path.endswith("step-000002/model")
    with torch.no_grad():
        ids = torch.arange(6)[None]
        logits = [each.model(ids).logits for each in (trained, models.policy)]
    torch.testing.assert_close(*logits)
    train(config, tmp_path / "antisd")
    assert metrics(tmp_path / "antisd")[0]["gate"] == 0.0  # the gate is warmed up anew

    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="empty has no checkpoint yet"):
        build_problem(tiny_run(tmp_path / "empty"))


def test_a_run_whose_only_checkpoint_is_the_best_names_it(model: Path, tmp_path: Path) -> None:
    config = tiny_run(model)
    saved = tmp_path / "young" / "checkpoints"
    saved.mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"young has no checkpoint yet$"):
        find_weights(str(tmp_path / "young"), config)
    (saved / "best").mkdir()
    with pytest.raises(CheckpointError, match=r"young has no checkpoint but its best: add --checkpoint best$"):
        find_weights(str(tmp_path / "young"), config)
