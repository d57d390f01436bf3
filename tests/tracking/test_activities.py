"""What goes on meanwhile: the line of an activity, the lines of a log, and a stop in the middle of sampling."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from selfdistill.models.policy import load_policy
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.hf import policy_sampler
from selfdistill.tracking import progress as module
from selfdistill.tracking.progress import Interrupted, Progress, activity, advance, check_stop, position, rewind


def shown(terminal: bool = False) -> tuple[Progress, io.StringIO]:
    text = io.StringIO()
    return Progress(Console(file=text, width=200, force_terminal=terminal)), text


def test_an_activity_tells_its_count_its_speed_and_its_time() -> None:
    progress, _ = shown()
    progress.console.quiet = True
    with progress, activity("evaluating"), activity("sampling", 64, "completions"):
        progress.activities[-1].began = time.monotonic() - 65.2
        assert progress.going_on() == "evaluating, sampling: 0 of 64 completions, 1:05"
        advance(12, tokens=6520)
        assert progress.going_on() == "evaluating, sampling: 12 of 64 completions, 100 tokens/s, 1:05"
        # What did not fit the memory is done again.
        before = position()
        advance(20, tokens=9)
        rewind(before)
        assert position() == (12, 6520)
        # How much there is to do may be known late.
        advance(of=36)
        assert "12 of 100 completions" in progress.going_on()
    assert progress.going_on() == ""


def test_without_a_progress_nothing_is_counted() -> None:
    with activity("sampling", 4, "completions", may_stop=True):
        advance(3)
        check_stop()
        assert position() == (0, 0)


def test_another_thread_does_not_count_for_what_this_one_does() -> None:
    progress, _ = shown()
    with progress, activity("learning", 4, "micro-batches"):
        thread = threading.Thread(target=advance, args=(3,))
        thread.start()
        thread.join()
        assert position() == (0, 0)


def test_a_log_gets_a_line_after_a_silence_and_none_where_nothing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE", 0.05)
    progress, text = shown()
    with progress:
        time.sleep(0.2)
        assert text.getvalue() == ""
        with activity("loading the model"):
            until = time.monotonic() + 20
            while "loading the model: 0:00\n" not in text.getvalue() and time.monotonic() < until:
                time.sleep(0.01)
    assert text.getvalue().startswith("loading the model: 0:00\n")


def test_a_sentence_is_said_where_activities_are_shown() -> None:
    progress, text = shown()
    module.log("before")
    with progress:
        module.log("meanwhile")
    assert text.getvalue() == "meanwhile\n"


def test_a_terminal_has_one_line_with_the_step_and_what_goes_on() -> None:
    progress, _ = shown(terminal=True)
    with progress, activity("sampling", 4, "completions"):
        progress.status("step 1/2")
        assert progress._live_line().plain == "step 1/2  sampling: 0 of 4 completions, 0:00"


@pytest.mark.parametrize(
    ("may_stop", "done", "requested", "ends"),
    [(True, 1, True, True), (False, 1, True, False), (True, 0, True, False), (True, 1, False, False)],
)
def test_only_what_may_stop_ends_early(may_stop: bool, done: int, requested: bool, ends: bool) -> None:
    progress, _ = shown()
    progress.stop_requested = lambda: requested
    with progress, activity("sampling", 4, "completions", may_stop=may_stop):
        advance(done)
        if ends:
            with pytest.raises(Interrupted):
                check_stop()
        else:
            check_stop()


def test_a_stop_ends_sampling_after_the_batch_that_is_being_sampled(model: Path) -> None:
    policy, chat = load_policy(str(model), dtype=torch.float32, device=torch.device("cpu"))
    sampler, params = policy_sampler(policy, chat, max_batch_size=2), SamplingParams(count=2, max_tokens=5)
    prompts = [(5, 6), (7, 8), (9, 10)]
    progress, _ = shown()
    with progress:
        with activity("sampling", 6, "completions", may_stop=True):
            completions = sampler.sample(prompts, params)
            # Every completion and every token is counted once.
            assert position() == (6, sum(len(one.ids) for row in completions for one in row))
        progress.stop_requested = lambda: True
        with activity("sampling", 6, "completions", may_stop=True):
            with pytest.raises(Interrupted):
                sampler.sample(prompts, params)
            assert position()[0] == 2


def test_a_time_in_words() -> None:
    assert [module._words(s) for s in (5.04, 89, 90, 1200, 5400, 36_000, 200_000)] == [
        "5 s",
        "89 s",
        "1.5 min",
        "20 min",
        "1.5 h",
        "10 h",
        "2.3 days",
    ]
