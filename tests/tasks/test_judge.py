"""A model as the judge: asked over HTTP, with what it costs and where it fails counted."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from datetime import date
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from urllib3.util import retry

from selfdistill.config.reward import JudgeConfig, RewardConfig
from selfdistill.config.run import parse_config
from selfdistill.errors import ConfigError, UserError
from selfdistill.tasks.endpoint import Endpoint
from selfdistill.tasks.judge import Judge
from selfdistill.tasks.reward import RewardedTask, parse_reward
from selfdistill.types import Example, Message, Verdict
from support.fake_judge import FakeJudge
from support.fake_vllm import serving
from support.runs import lines, open_run, recorder, tiny_run
from support.runs import train as train_run

SUM = Example("rows:1", (Message("user", "1 + 1?"),), {"solution": "two"}, {"sum": 2})
OTHER = Example("rows:2", (Message("user", "2 + 2?"),), {"solution": "four"}, {"sum": 4})


def asked(*texts: str, example: Example = SUM) -> list[tuple[Example, str, bool]]:
    return [(example, text, True) for text in texts]


def length_of_response(question: str) -> str:
    """The rating that the response's own length gives, in the form that the shipped template asks for."""
    text = question.partition("<response>\n")[2].partition("\n</response>")[0]
    return f"It has some letters.\nScore: {len(text)}"


def longer(question: str) -> str:
    """Which of two texts 'A=…, B=…' is longer."""
    first, second = (part.partition("=")[2] for part in question.split(", "))
    return "tie, so Better: tie" if len(first) == len(second) else f"Better: {'AB'[len(second) > len(first)]}"


def judge_at(url: str, **more: Any) -> Judge:
    return Judge(JudgeConfig(url=f"{url}/v1", model="m", wait=0.0, **more))


def rewards(judge: Judge, made: Sequence[tuple[Example, str, bool]]) -> list[float | None]:
    return [one.reward for one in judge.judge(made)]


def test_a_number_on_the_scale_is_a_reward_from_0_to_1_and_others_are_counted_as_unreadable() -> None:
    fake = FakeJudge(length_of_response)
    with serving(fake) as [url]:
        judged = judge_at(url).judge(asked("four", "", "x" * 10, "x" * 11))
    assert [one.reward for one in judged] == [0.4, 0.0, 1.0, None]
    assert [one.counts["unreadable"] for one in judged] == [0, 0, 0, 1]
    assert all(one.counts["asked"] == 1 for one in judged)
    assert fake.bodies[0]["model"] == "m"
    assert fake.bodies[0]["temperature"] == 0.0


def test_the_last_match_of_the_pattern_counts_on_a_scale_of_ones_own() -> None:
    fake = FakeJudge(lambda question: "first I thought [1], now [4]")
    with serving(fake) as [url]:
        judge = judge_at(url, template="$prompt|$completion|$sum|$$", pattern=r"\[(\d)\]", lowest=1, highest=5)
        assert rewards(judge, asked("a")) == [0.75]
    assert fake.questions == ["1 + 1?|a|2|$"]


def test_a_column_does_not_take_the_name_of_the_scale_or_of_what_is_judged() -> None:
    fake = FakeJudge(lambda question: "Score: 5")
    columns = dict.fromkeys(("highest", "lowest", "prompt", "completion"), "of the row")
    with serving(fake) as [url]:
        judge = judge_at(url, template="$prompt $lowest to $highest: $completion")
        assert rewards(judge, asked("a", example=Example("rows:3", SUM.prompt, {}, columns))) == [0.5]
    assert fake.questions == ["1 + 1? 0 to 10: a"]


def test_what_the_model_wrote_stays_text() -> None:
    """It names fields, breaks out of no JSON, and a half character is replaced."""
    text = '$sum ${prompt} $$ "}],"model":"x" \ud800'
    fake = FakeJudge(lambda question: "Score: 3")
    with serving(fake) as [url]:
        assert rewards(judge_at(url, template="<$completion>"), asked(text)) == [0.3]
    assert fake.questions == ['<$sum ${prompt} $$ "}],"model":"x" \ufffd>']
    assert fake.bodies[0]["model"] == "m"


def test_a_round_robin_gives_the_share_of_comparisons_won() -> None:
    """Of "a", "bbb", "cc", "a": wins 0 + ½, 3, 2, 0 + ½ of three comparisons; equal texts are not asked for."""
    fake = FakeJudge(longer)
    with serving(fake) as [url]:
        judge = judge_at(url, compare="all", template="A=$first, B=$second")
        made = asked("a", "bbb", "cc", "a") + asked("z", "zz", example=OTHER)
        assert rewards(judge, made) == [0.5 / 3, 1.0, 2 / 3, 0.5 / 3, 0.0, 1.0]
    # (a, bbb), (a, cc), (bbb, cc), each in both orders; those of the second "a" are the same; and (z, zz).
    assert sorted(fake.questions) == sorted(
        f"A={x}, B={y}" for a, b in (("a", "bbb"), ("a", "cc"), ("bbb", "cc"), ("z", "zz")) for x, y in ((a, b), (b, a))
    )


def test_a_judge_that_always_prefers_what_it_reads_first_gives_everyone_one_half_in_both_orders() -> None:
    fake = FakeJudge(lambda question: "Better: A")
    with serving(fake) as [url]:
        assert rewards(judge_at(url, compare="all"), asked("a", "b", "c")) == [0.5, 0.5, 0.5]
        assert rewards(judge_at(url, compare="all", both_orders=False), asked("a", "b", "c")) == [1.0, 0.5, 0.0]


def test_the_first_of_the_group_or_the_reference_is_compared_with_the_others_alone() -> None:
    fake = FakeJudge(longer)
    with serving(fake) as [url]:
        template = "A=$first, B=$second"
        assert rewards(judge_at(url, compare="first", template=template), asked("aa", "b", "ccc")) == [0.5, 0.0, 1.0]
        assert len(fake.calls) == 4
        # The reference is "two".
        own = judge_at(url, compare="reference", template=template)
        assert rewards(own, asked("aa", "ccc", "dddd")) == [0.0, 0.5, 1.0]
        with pytest.raises(ConfigError, match="example bare has no response and no solution"):
            own.judge(asked("a", example=Example("bare", SUM.prompt)))


def test_failures_are_tried_again_and_those_that_another_try_would_not_change_are_not() -> None:
    fake = FakeJudge(lambda question: "Score: 5")
    with serving(fake) as [url]:
        judge = judge_at(url, retries=3)
        fake.failures = [(503, "busy"), (429, "slow down"), None]
        assert rewards(judge, asked("a")) == [0.5]
        assert len(fake.calls) == 4
        fake.failures = [(400, "too long")]
        [judged] = judge.judge(asked("b"))
        assert (judged.reward, judged.counts["failed"], len(fake.calls)) == (None, 1, 5)
        # What is no chat completion, and one without text.
        fake.failures = [(200, "<html>"), (200, {"choices": [{"message": {"content": None}}]})]
        assert [one.counts["failed"] for one in judge.judge(asked("c", "d"))] == [1, 1]
        # A request that failed is asked anew.
        assert rewards(judge, asked("b")) == [0.5]


def test_a_pause_is_doubled_or_as_long_as_the_endpoint_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    monkeypatch.setattr(retry, "time", SimpleNamespace(sleep=paused.append))
    fake = FakeJudge(lambda question: "Score: 5")
    with serving(fake) as [url]:
        judge = judge_at(url, retries=3).config.model_copy(update={"wait": 2.0})
        fake.failures = [(503, "busy"), (429, "slow down", {"Retry-After": "30"}), (503, "busy")]
        assert rewards(Judge(judge), asked("a")) == [0.5]
        assert paused == [2.0, 30.0, 8.0]


def test_once_the_endpoint_is_gone_the_rest_of_a_batch_tries_once_each() -> None:
    fake = FakeJudge(lambda question: "Score: 5")
    with serving(fake) as [url]:
        judge = Judge(JudgeConfig(url=f"{url}/v1", model="m", wait=0.0, retries=3), concurrency=1)
        fake.failures = [(503, "gone")] * 20
        assert [one.counts["failed"] for one in judge.judge(asked("a", "b", "c"))] == [1, 1, 1]
        assert len(fake.calls) == 4 + 1 + 1
        # The next batch has all its tries again.
        fake.failures = [(503, "gone"), None]
        assert rewards(judge, asked("a")) == [0.5]


def test_answers_are_kept_on_disk_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    fake = FakeJudge(length_of_response)
    said: list[str] = []
    with serving(fake) as [url]:
        for start in range(2):
            judge = judge_at(url)
            judge.open(tmp_path, said.append)
            judged = judge.judge(asked("four", "four", "xx"))
            assert [one.reward for one in judged] == [0.4, 0.4, 0.2]
            expected = [(1, 0), (0, 1), (1, 0)] if start == 0 else [(0, 1)] * 3
            assert [(one.counts["asked"], one.counts["cached"]) for one in judged] == expected
        assert len(fake.calls) == 2
        # An answer of another model or scale is another answer; a damaged file is asked for again.
        named = judge_at(url, cache=str(tmp_path / "judge" / "answers"), parameters={"temperature": 1.0})
        assert rewards(named, asked("xx")) == [0.2]
        assert len(fake.calls) == 3
        for path in (tmp_path / "judge" / "answers").rglob("*.json"):
            path.write_text("{", encoding="utf-8")
        assert rewards(named, asked("xx")) == [0.2]
        assert len(fake.calls) == 4


@pytest.mark.parametrize("in_folder", [False, True])
def test_beyond_the_budget_nothing_is_asked_and_it_is_said(tmp_path: Path, *, in_folder: bool) -> None:
    fake = FakeJudge(length_of_response)
    said: list[str] = []
    with serving(fake) as [url]:
        judge = judge_at(url, budget=3)
        judge.log = said.append
        if in_folder:
            judge.open(tmp_path, said.append)
        assert rewards(judge, asked("a", "bb")) == [0.1, 0.2]
        if in_folder:
            # Another start, or another rank, shares the budget.
            judge = judge_at(url, budget=3)
            judge.open(tmp_path, said.append)
        judged = judge.judge(asked("a", "ccc", "dddd"))
    assert [one.reward for one in judged] == [0.1, 0.3, None]
    assert [one.counts["over_budget"] for one in judged] == [0, 0, 1]
    assert said == ["judge: of 3 requests 1 not sent, because the budget of 3 is spent; 1 completion stays unjudged"]
    assert len(fake.calls) == 3


def test_a_key_is_sent_and_neither_shown_nor_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeJudge(lambda question: "Score: 5")
    fake.password = "Bearer s3cret"
    said: list[str] = []
    with serving(fake) as [url]:
        with pytest.raises(ConfigError, match="environment variable THE_KEY, which is not set"):
            judge_at(url, key_env="THE_KEY")
        for broken in ("s3\ncret", "s3cr\u2026t"):
            monkeypatch.setenv("THE_KEY", broken)
            with pytest.raises(ConfigError, match="THE_KEY, which holds line breaks or letters") as refused:
                judge_at(url, key_env="THE_KEY")
            assert "cr" not in str(refused.value)
        monkeypatch.setenv("THE_KEY", "s3cret\n")
        judge = judge_at(url, key_env="THE_KEY")
        judge.open(tmp_path, said.append)
        assert rewards(judge, asked("a")) == [0.5]
        # An endpoint that repeats the key in its complaint.
        fake.failures = [(500, "no s3cret here")] * 9
        assert rewards(judge, asked("b")) == [None]
    assert any("500" in sentence for sentence in said)
    stored = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*") if path.is_file()]
    assert not any("s3cret" in text for text in (*said, *stored, judge.config.model_dump_json()))


def test_a_redirect_is_not_followed() -> None:
    """The key and the completions go to the address that was named alone."""
    fake = FakeJudge(lambda question: "Score: 5")

    class Elsewhere(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(307)
            self.send_header("Location", f"{fake.url}/v1/chat/completions")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    with serving(fake), HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        [judged] = judge_at(f"http://127.0.0.1:{server.server_address[1]}").judge(asked("a"))
        server.shutdown()
    assert (judged.counts["failed"], fake.calls) == (1, [])


class Plain:
    """A task without a verifier."""

    name, contexts, has_verifier = "plain", "default", False

    def examples(self, split: str) -> Sequence[Example]:
        return [SUM]

    def verify(self, example: Example, text: str, *, finished: bool) -> Verdict:
        return Verdict(None, text)


def test_a_judge_stands_beside_functions_with_a_weight_of_its_own() -> None:
    def even(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        return [float(len(text) % 2 == 0) for text in completions]

    fake = FakeJudge(length_of_response)
    with serving(fake) as [url]:
        table = {"judge": {"url": f"{url}/v1", "model": "m"}, "function": [even], "weights": [1.0, 0.5]}
        task = RewardedTask(Plain(), *parse_reward(table))
        verdict, other = task.verify_many(asked("four", "x"))
        assert (verdict.reward, other.reward) == (1.2, 0.05)
        assert verdict.details["reward/judge"] == 0.4
        assert verdict.details["judge/asked"] == 1.0
        # Functions are tried without it.
        assert task.without_judge().verify_many(asked("four"))[0].reward == 1.0
        assert len(fake.calls) == 2
        alone = RewardedTask(
            Plain(), *parse_reward({"kind": "judge", "url": f"{url}/v1", "model": "m", "success": 0.3})
        )
        assert [verdict.correct for verdict in alone.verify_many(asked("four", "x"))] == [True, False]
        assert alone.has_verifier


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"url": "localhost:1"}, "url is an http:// or https:// address"),
        ({"url": "http://host/v1?api-version=2"}, r"url has a \? or a #: give the base address alone"),
        ({"url": "http://me:pass@host/v1"}, "url holds a password: name an environment variable"),
        ({"template": "$prompt"}, r"template lacks \$completion"),
        ({"template": "$5 $completion"}, "write \\$\\$ for the sign itself"),
        ({"compare": "all", "template": "$first"}, r"template lacks \$second"),
        ({"pattern": "("}, "is no regular expression"),
        ({"pattern": "Score"}, "must have one group"),
        ({"lowest": 3, "highest": 3}, "lowest must be below highest: 3 and 3"),
        ({"parameters": {"model": "x"}}, "must not hold 'model'"),
        ({"parameters": {"until": date(2000, 1, 1)}}, "parameters: .*its values go out as JSON: Object of type date"),
        ({"modell": "x"}, "unknown key 'reward.judge.modell'; did you mean 'reward.judge.model'"),
    ],
)
def test_a_mistake_is_one_sentence(wrong: dict[str, Any], message: str) -> None:
    table = {"kind": "judge", "url": "http://127.0.0.1:1/v1", "model": "m", **wrong}
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config({"method": "grpo", "reward": table}, "mine.toml")
    assert "pass@" not in str(caught.value)
    with pytest.raises(ConfigError, match="kind must be 'judge', got 'jury'"):
        parse_reward({"kind": "jury"})


def test_a_column_that_the_rows_lack_is_named() -> None:
    with serving(FakeJudge(lambda question: "Score: 5")) as [url]:
        judge = judge_at(url, template="$completion $hint")
        with pytest.raises(ConfigError, match=r"names \$hint, which example rows:1 lacks; it has .*solution, sum"):
            judge.judge(asked("a"))


def test_a_run_counts_what_its_judge_did_and_a_stop_and_resume_ask_nothing_twice(folder: Path, tmp_path: Path) -> None:
    fake = FakeJudge(lambda question: f"Score: {sum(question.encode()) % 11}")
    with serving(fake) as [url]:
        table = {"kind": "judge", "url": f"{url}/v1", "model": "m", "success": 0.5}
        config = tiny_run(folder, "grpo").model_copy(update={"reward": RewardConfig.model_validate(table)})
        train_run(config, tmp_path / "whole")
        whole = lines(tmp_path / "whole" / "metrics.jsonl")
        assert all(line["judge_asked"] + line["judge_cached"] == 9 for line in whole)
        assert all(line["judge_failed"] == line["judge_over_budget"] == 0 for line in whole)
        # The question at the start is not kept.
        assert sum(1 for path in (tmp_path / "whole" / "judge").rglob("*.json")) == len(fake.questions) - 1 > 9
        once = len(fake.questions)
        train_run(config, tmp_path / "parts", stop_after=3)
        train_run(config, tmp_path / "parts", resume=True)
        assert len(fake.questions) == 2 * once + 1
        parts = lines(tmp_path / "parts" / "metrics.jsonl")
        assert [line["reward"] for line in parts] == [line["reward"] for line in whole]
        stored = json.loads((tmp_path / "whole" / "config.json").read_text(encoding="utf-8"))
        assert parse_config(stored, "again").reward == config.reward


def test_an_endpoint_that_does_not_answer_is_noticed_at_the_start(folder: Path, tmp_path: Path) -> None:
    table = {"kind": "judge", "url": "http://127.0.0.1:9/v1", "model": "m", "retries": 1, "wait": 0.0}
    config = tiny_run(folder, "grpo").model_copy(update={"reward": RewardConfig.model_validate(table)})
    answer = r"does not answer \(\[Errno \d+\] Connection refused\): start the endpoint"
    with pytest.raises(UserError, match=rf"judge http://127\.0\.0\.1:9/v1: {answer}"):
        open_run(config, tmp_path / "dead")
    assert not (tmp_path / "dead").exists()


@pytest.mark.parametrize(
    ("at", "failure", "sentence"),
    [
        (
            "",
            None,
            "has no /chat/completions (404): give the base address of an OpenAI-compatible endpoint, as",
        ),
        ("/v1", (404, {"error": {"message": "no model m"}}), 'does not know the model \'m\' ({"error": {"message": '),
        (
            "/v1",
            (401, {"error": "who?"}),
            "wants a login or another key (401 at URL/v1/chat/completions): name",
        ),
        (
            "/v1",
            (200, "<html>a proxy</html>"),
            "answers with a web page at URL/v1/chat/completions (200), not as",
        ),
    ],
    ids=["no endpoint", "no model", "no key", "a page"],
)
def test_what_is_no_judge_is_told_before_a_question_is_asked(at: str, failure: Any, sentence: str) -> None:
    fake = FakeJudge(lambda question: pytest.fail(question))
    fake.models = ["other"]
    fake.failures = [failure] if failure else []
    with serving(fake) as [url], pytest.raises(UserError) as error:
        Endpoint(JudgeConfig(url=f"{url}{at}", model="m")).probe()
    assert str(error.value).replace(url, "URL").startswith(f"judge URL{at}: {sentence}")


def test_failures_are_shown_while_a_run_goes_on(folder: Path, tmp_path: Path) -> None:
    fake = FakeJudge(lambda question: "no idea")
    with serving(fake) as [url]:
        table = {"kind": "judge", "url": f"{url}/v1", "model": "m"}
        config = tiny_run(folder, "grpo", "steps=1").model_copy(update={"reward": RewardConfig.model_validate(table)})
        run = open_run(config, tmp_path / "mute")
        run.train()
    [line] = lines(tmp_path / "mute" / "metrics.jsonl")
    assert (line["judge_unreadable"], line["reward"]) == (9, None)
    assert any("reward.judge.pattern matches" in sentence for sentence in recorder(run).said)
