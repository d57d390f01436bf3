"""Episodes: what is sampled is kept as it was, and a bad world ends its own episode and nothing else."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from selfdistill.contexts.chat import Chat
from selfdistill.errors import ModelError
from selfdistill.models.prefill import Prefill
from selfdistill.sampling import environments, episodes
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.environments import call_all
from selfdistill.sampling.hf import HFSampler
from selfdistill.sampling.memory import BatchSizeLimit
from selfdistill.sampling.rollouts import sample_and_verify
from selfdistill.tasks.countdown.turns import CountdownTurnsTask
from selfdistill.tasks.turns import environment_of
from selfdistill.types import Completion, Example, Message, Reply, Start, Task
from selfdistill.types.conversation import DONE, segments_of, turn_numbers, with_gaps
from support.engine import load_exact, token_logprobs
from support.tiny import tiny_tokenizer
from support.turns import AT, OFTEN, SPOKEN, Script, Spoken, Talks, by_hand, ends, examples, played


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(tiny_tokenizer(), stop_ids=[2], window=256, name="tiny")


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_gaps_stand_between_turns_and_have_segment_0() -> None:
    gaps = ((2, (90, 91)), (3, (92,)))
    assert with_gaps((1, 2, 3, 4, 5), gaps) == (1, 2, 90, 91, 3, 92, 4, 5)
    assert segments_of(5, gaps) == (1, 1, 0, 0, 2, 0, 3, 3)
    assert turn_numbers(5, gaps) == (1, 1, 2, 3, 3)
    assert (with_gaps((1, 2), ()), segments_of(2, ()), turn_numbers(2, ())) == ((1, 2), (1, 1), (1, 1))


def test_the_next_prompt_is_what_was_sampled_and_the_templates_tokens_for_the_new_messages(chat: Chat) -> None:
    script = Script(chat)
    groups = played(chat, script)
    for g, group in enumerate(groups):
        for i, rollout in enumerate(group.rollouts):
            tail, turns = by_hand(chat, g, i)
            assert (rollout.ids_after_prompt, rollout.segments) == (tail, turns)
            assert rollout.prompt_ids == chat.encode(group.example.prompt)
            assert rollout.completion_ids == tuple(t for t, turn in zip(tail, turns, strict=True) if turn)
            assert len(rollout.logprobs) == len(rollout.completion_ids) and rollout.finished
            # Every place where a turn begins was asked for, with exactly the ids before it.
            whole = (*rollout.prompt_ids, *tail)
            begins = [n for n, turn in enumerate(turns) if turn and (n == 0 or turns[n - 1] == 0)]
            assert all(whole[: len(rollout.prompt_ids) + n] in script.asked for n in begins)
    assert len(script.asked) == 11
    first = groups[0].rollouts[0].episode
    assert first is not None and first.opening == groups[0].example.prompt
    assert [(t.text, t.reward, t.tokens) for t in first.turns] == [
        (SPOKEN[0][0][0][0], 0.0, 14),
        (SPOKEN[0][0][1][0], 1.0, 8),
    ]
    assert groups[0].rollouts[0].text == f"{SPOKEN[0][0][0][0]} <|end|> {SPOKEN[0][0][1][0]}"


def test_an_episode_earns_the_sum_of_its_turns(chat: Chat) -> None:
    groups = played(chat, Script(chat))
    assert [[v.reward for v in group.verdicts] for group in groups] == [[1.0, 0.0, 1.0], [1.0, 0.0, 0.25]]
    assert [v.correct for v in groups[0].verdicts] == [True, False, True]
    assert [v.answer for v in groups[1].verdicts] == ["9", "8", "wait"]
    assert groups[0].verdicts[0].feedback == SPOKEN[0][0][0][1]


def test_a_template_that_renders_turns_otherwise_is_noticed_and_one_that_keeps_them_is_not(chat: Chat) -> None:
    def with_turns(assistant: str) -> Chat:
        tokenizer = tiny_tokenizer()
        own = f"({assistant} if m.role == 'assistant' else m.content)"
        tokenizer.chat_template = tokenizer.chat_template.replace("m.content", own, 1)
        return Chat(tokenizer, stop_ids=[2], window=256, name="tiny")

    opening = (Message("user", "make 9 ."),)
    assert not with_turns("'<think> ' + m.content").rewrites_turns(opening)
    # Without the mark that the prompt ends with, and without the thought.
    assert chat.rewrites_turns(opening)
    dropping = with_turns("m.content.split('</think>')[-1]")
    assert dropping.rewrites_turns(opening)
    # What was sampled is kept all the same.
    rollout = played(dropping, Script(dropping))[0].rollouts[0]
    assert rollout.ids_after_prompt == by_hand(dropping, 0, 0)[0]


@pytest.mark.parametrize(
    "said", [("so",), ("user : 9 ?", "<|end|> <|assistant|> answer 9"), ("",), ("so sentinel0answer 9",)]
)
def test_a_reply_continues_as_the_template_renders_the_whole(chat: Chat, said: tuple[str, ...]) -> None:
    opening = (Message("system", "solve"), Message("user", "make 9 ."))
    messages = tuple(Message("user", text) for text in said)
    whole = chat.encode((*opening, Message("assistant", "answer 9"), *messages))
    as_sampled = (*chat.encode(opening), *chat.response("answer 9"))
    # The template writes "<think>" before a turn that is to come, and nothing before one that was.
    begun = chat.encode(opening)[:-1]
    assert whole == (*begun, *as_sampled[len(begun) + 1 :], *chat.after_turn(opening, messages))


def test_sampled_log_probabilities_are_those_of_one_forward_over_the_whole_conversation(folder: Path) -> None:
    policy, chat = load_exact(folder)
    task: Any = Talks()
    params = SamplingParams(count=3, max_tokens=6, seed=5)
    groups = sample_and_verify(examples(), task, HFSampler(policy, stop_ids=OFTEN), chat, params)
    assert max(len(r.episode.turns) for g in groups for r in g.rollouts if r.episode) > 1
    for rollout in (r for group in groups for r in group.rollouts):
        whole = token_logprobs(policy.model, rollout.prompt_ids, rollout.ids_after_prompt, policy.vocab_size)
        own = [float(p) for p, turn in zip(whole, rollout.segments, strict=True) if turn]
        assert rollout.logprobs == pytest.approx(own, abs=1e-9)


def test_an_episode_depends_on_neither_the_batch_nor_the_rank(folder: Path) -> None:
    policy, chat = load_exact(folder)
    params = SamplingParams(count=3, max_tokens=6, seed=5)

    talks: Any = Talks()

    def texts(which: Sequence[int], size: int) -> list[list[str]]:
        share = [examples()[i] for i in which]
        sampler = HFSampler(policy, stop_ids=OFTEN, max_batch_size=size)
        groups = sample_and_verify(share, talks, sampler, chat, replace(params, ordinals=which))
        return [[r.text for r in group.rollouts] for group in groups]

    whole = texts([0, 1], 64)
    assert len({text for row in whole for text in row}) > 3
    assert texts([0, 1], 1) == whole
    assert [*texts([0], 64), *texts([1], 64)] == whole


@pytest.mark.parametrize("most", [64, 2])
def test_what_was_read_is_not_read_again(most: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An opening is read once for its group, then every token once; where not all fit into a batch, all of it again."""
    policy, chat = load_exact(folder)
    plain, read = policy.next_token, list[int]()

    def counted(ids_BL: Any, mask_BL: Any, *more: Any) -> Any:
        # One token a row is decoding, and a turn's end is never alone: the environment's words follow it.
        if ids_BL.shape[1] > 1:
            padding = 0 if mask_BL is None else int((~mask_BL[:, -ids_BL.shape[1] :]).sum())
            read.append(ids_BL.numel() - padding)
        return plain(ids_BL, mask_BL, *more)

    monkeypatch.setattr(policy, "next_token", counted)
    sampler, task = HFSampler(policy, stop_ids=OFTEN, max_batch_size=most), Talks()
    params = SamplingParams(count=3, max_tokens=6, seed=5)
    groups = sample_and_verify(examples(), cast("Task", task), sampler, chat, params)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    assert max(turn for rollout in rollouts for turn in rollout.segments) == 3
    openings = sum(len(group.rollouts[0].prompt_ids) for group in groups)
    # Every turn but the last is followed by its end and what the environment said.
    between = sum(rollout.segments.count(0) + max(rollout.segments) - 1 for rollout in rollouts)
    assert sum(read) == openings + between if most == 64 else sum(read) > openings + between


def test_conversations_that_do_not_fit_into_memory_are_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, chat = load_exact(folder)
    said, refused = list[str](), list[int]()

    def talked(limit: BatchSizeLimit) -> list[tuple[int, ...]]:
        sampler, task = HFSampler(policy, stop_ids=OFTEN, max_batch_size=limit), Talks()
        params = SamplingParams(count=3, max_tokens=6, seed=5)
        groups = sample_and_verify(examples(), cast("Task", task), sampler, chat, params)
        return [rollout.completion_ids for group in groups for rollout in group.rollouts]

    def full(model: Any, kept: Sequence[Any], following: Any) -> Prefill:
        refused.append(len(kept))
        raise torch.OutOfMemoryError("CUDA out of memory")

    whole = talked(BatchSizeLimit(64))
    monkeypatch.setattr(Prefill, "continued", full)
    limit = BatchSizeLimit(64, said.append)
    assert talked(limit) == talked(limit) == whole
    # Once: nothing is kept from then on, and batches are as large as before.
    assert (len(refused), limit.value) == (1, 64)
    assert [sentence.split(";")[0] for sentence in said] == [
        "memory does not suffice to keep conversations between their turns"
    ]


# --- limits ----------------------------------------------------------------------------------------------------------


def test_a_cut_turn_ends_the_episode_and_earns_what_was_earned(chat: Chat) -> None:
    groups = played(chat, Script(chat, cut=SPOKEN[1][2][1][0]))
    assert ends(groups) == [DONE] * 5 + [episodes.CUT]
    rollout, verdict = groups[1].rollouts[2], groups[1].verdicts[2]
    assert not rollout.finished and verdict.reward == 0.0 and verdict.feedback == episodes.CUT_FEEDBACK
    assert rollout.completion_ids[-1] != 2


def test_an_episode_ends_at_its_turn_limit(chat: Chat) -> None:
    task = Spoken()
    task.max_turns = 2  # type: ignore[attr-defined]
    groups = played(chat, Script(chat), task)
    assert ends(groups) == [DONE] * 3 + [episodes.TURN_LIMIT, DONE, DONE]
    assert (groups[1].verdicts[0].reward, groups[1].rollouts[0].finished) == (0.0, False)


def test_an_episode_without_room_for_another_turn_ends(chat: Chat) -> None:
    # The last of three turns has 4 tokens; there has to be room for the 12 that it may have.
    whole = len(chat.encode(examples()[1].prompt)) + len(by_hand(chat, 1, 0)[0])
    narrow, wide = (Chat(tiny_tokenizer(), stop_ids=[2], window=whole - 4 + room, name="narrow") for room in (11, 12))
    groups = played(narrow, Script(narrow), max_tokens=12)
    assert ends(groups)[3:] == [episodes.NO_ROOM, DONE, DONE]
    assert ends(played(wide, Script(wide), max_tokens=12))[3:] == [DONE, DONE, DONE]
    rollout = groups[1].rollouts[0]
    assert rollout.episode and len(rollout.episode.turns) == 2
    assert not rollout.finished and groups[1].verdicts[0].reward == 0.0


# --- bad worlds ------------------------------------------------------------------------------------------------------


def explodes(text: str) -> Any:
    raise ZeroDivisionError("no such move")


def leaves(text: str) -> Any:
    raise SystemExit(3)


def is_late(text: str) -> Any:
    time.sleep(0.4)
    return Reply("too late")


async def never(text: str) -> Any:
    await asyncio.sleep(60)


def deep(depth: int) -> Any:
    return deep(depth + 1)


def interrupts(text: str) -> Any:
    raise KeyboardInterrupt


class Lazy(Sequence[Message]):
    """Messages that are made when they are read."""

    def __init__(self, *, hangs: bool = False) -> None:
        self.hangs = hangs

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> Any:
        if self.hangs:
            threading.Event().wait()
        raise OSError("the game has gone")


class Raising(float):
    def __float__(self) -> float:
        raise ArithmeticError("no magnitude")


BAD = {
    "raises": (explodes, environments.RAISED),
    "exits": (leaves, environments.RAISED),
    "late": (is_late, environments.LATE),
    "late coroutine": (never, environments.LATE),
    "hangs": (lambda text: threading.Event().wait(), environments.LATE),
    "none": (lambda text: None, environments.NO_TEXT),
    "no words": (lambda text: Reply(), environments.NO_TEXT),
    "numbers": (lambda text: Reply([7]), environments.NO_TEXT),  # type: ignore[list-item]
    "bytes": (lambda text: Reply(b"so"), environments.NO_TEXT),  # type: ignore[arg-type]
    "feedback": (lambda text: Reply("so", feedback=3), environments.NO_TEXT),  # type: ignore[arg-type]
    "megabytes": (lambda text: Reply("so " * 2_000_000), environments.TOO_LONG),
    "megabytes at the end": (lambda text: Reply(done=True, feedback="so " * 2_000_000), environments.TOO_LONG),
    "nan": (lambda text: Reply("so", reward=float("nan")), environments.NO_NUMBER),
    "words": (lambda text: Reply("so", reward="much"), environments.NO_NUMBER),  # type: ignore[arg-type]
    "beyond floats": (lambda text: Reply("so", reward=10**5000), environments.NO_NUMBER),
    "beyond a sum": (lambda text: Reply("so", reward=-1.7e308), environments.NO_NUMBER),
    # What is returned may itself raise or hang when it is looked at.
    "messages that raise": (lambda text: Reply(Lazy()), environments.RAISED),
    "messages that hang": (lambda text: Reply(Lazy(hangs=True)), environments.LATE),
    "success of two": (lambda text: Reply("so", success=np.array([True, False])), environments.RAISED),  # type: ignore[arg-type]
    "done of two": (lambda text: Reply("so", done=np.array([1, 2])), environments.RAISED),  # type: ignore[arg-type]
    "error of two": (lambda text: Reply("so", error=np.array([1, 2])), environments.RAISED),  # type: ignore[arg-type]
    "a number that raises": (lambda text: Reply("so", reward=Raising(1.0)), environments.RAISED),
    "megabytes of a name": (lambda text: Reply("so", anchor="so " * 2_000_000), environments.TOO_LONG),
    "megabytes of a note": (lambda text: Reply("so", note="so " * 2_000_000), environments.TOO_LONG),
    "a note of bytes": (lambda text: Reply("so", note=b"so"), environments.NO_TEXT),  # type: ignore[arg-type]
    "a function": (lambda text: explodes, environments.NO_TEXT),
    "never ends": (lambda text: deep(0), environments.RAISED),
    "interrupts": (interrupts, environments.RAISED),
    "broken tools": (lambda text: Reply([Message("tools", "no JSON")]), episodes.UNRENDERED),
    "no list of tools": (lambda text: Reply([Message("tools", "3")]), episodes.UNRENDERED),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_world_ends_its_own_episode_and_nothing_else(case: str, chat: Chat) -> None:
    faulty, reason = BAD[case]
    task = Spoken(faulty, AT)
    task.seconds = 0.2
    groups, fine = played(chat, Script(chat), task), played(chat, Script(chat))
    assert ends(groups) == [DONE, reason, *[DONE] * 4]
    bad, verdict = groups[0].rollouts[1], groups[0].verdicts[1]
    # The turn that was sampled stays, without a reward.
    assert bad.text == AT and verdict.reward is None and bad.gaps == ()
    others = [(g, i) for g in range(2) for i in range(3) if (g, i) != (0, 1)]
    assert [groups[g].rollouts[i] for g, i in others] == [fine[g].rollouts[i] for g, i in others]
    assert [groups[g].verdicts[i] for g, i in others] == [fine[g].verdicts[i] for g, i in others]


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("raises", "the environment raised an error: ZeroDivisionError: no such move"),
        ("none", "the environment returned no text: reply returned a NoneType, not a Reply"),
        ("words", "the environment returned a reward that is no number: reward 'much'"),
    ],
)
def test_what_was_wrong_is_logged_once_for_all_episodes(
    case: str, line: str, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(episodes, "log", logged.append)
    faulty = BAD[case][0]
    monkeypatch.setattr(Spoken, "reply", lambda self, state, text: faulty(text))
    played(chat, Script(chat))
    assert logged == [f"Spoken: {line}"]


def test_a_world_that_fails_later_takes_back_what_was_earned(chat: Chat) -> None:
    groups = played(chat, Script(chat), Spoken(explodes, SPOKEN[0][1][1][0]))
    bad, verdict = groups[0].rollouts[1], groups[0].verdicts[1]
    assert ends(groups) == [DONE, environments.RAISED, *[DONE] * 4]
    assert bad.episode and [turn.reward for turn in bad.episode.turns] == [0.0, None]
    assert verdict.reward is None and bad.segments == by_hand(chat, 0, 1)[1]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (None, environments.NO_TEXT),
        (Start(None, [Message("assistant", "hi")]), episodes.UNRENDERED),
        (Start(None, "so " * 200_000), environments.TOO_LONG),
        (Start(None, "so " * 300), episodes.NO_OPENING),
    ],
)
def test_an_episode_that_cannot_start_has_one_turn_of_its_prompt_and_no_reward(
    given: Any, reason: str, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = iter([given])
    monkeypatch.setattr(Spoken, "start", lambda self, example: next(started, Start()))
    groups = played(chat, Script(chat), OneAtATime())
    assert ends(groups) == [reason, *[DONE] * 5]
    assert groups[0].rollouts[0].text == SPOKEN[0][0][0][0] and groups[0].verdicts[0].reward is None
    assert groups[0].rollouts[0].prompt_ids == chat.encode(examples()[0].prompt)


class OneAtATime(Spoken):
    at_once = 1


def test_a_start_that_raises_ends_its_own_episodes(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(self: Spoken, example: Example) -> Start:
        return Start() if example.id == examples()[0].id else explodes(example.id)

    monkeypatch.setattr(Spoken, "start", start)
    assert ends(played(chat, Script(chat))) == [DONE] * 3 + [environments.RAISED] * 3


def test_a_reply_that_the_template_refuses_ends_the_episode(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    def after_turn(self: Chat, opening: Any, said: Any, *, thinking: Any = None) -> Any:
        raise ModelError("cannot render")

    monkeypatch.setattr(Chat, "after_turn", after_turn)
    assert ends(played(chat, Script(chat))).count(episodes.UNRENDERED) == 4


def test_an_opening_of_the_environments_own_is_what_the_model_is_asked(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = (Message("system", "solve"), Message("user", "make 9 ."))
    monkeypatch.setattr(Spoken, "start", lambda self, example: Start(None, own))
    for rollout in (r for group in played(chat, Script(chat)) for r in group.rollouts):
        assert rollout.prompt_ids == chat.encode(own) and rollout.episode and rollout.episode.opening == own


def test_coroutines_are_awaited(chat: Chat) -> None:
    class Async(Spoken):
        async def start(self, example: Example) -> Start:  # type: ignore[override]
            return Start()

        async def reply(self, state: object, text: str) -> Reply:
            await asyncio.sleep(0)
            return super().reply(state, text)  # type: ignore[no-any-return]

    assert played(chat, Script(chat), Async()) == played(chat, Script(chat))


def test_what_is_said_is_well_formed_and_any_real_number_is_a_reward(chat: Chat) -> None:
    half: Any = np.float32(0.5)
    said = [Message("user\udfff", "so \ud800")]
    task = Spoken(
        lambda text: Reply(said, half > 0, reward=half, feedback="\udfff", answer="\ud800", success=half > 0), AT
    )
    groups = played(chat, Script(chat), task)
    verdict, episode = groups[0].verdicts[1], groups[0].rollouts[1].episode
    assert (verdict.reward, verdict.feedback, verdict.answer) == (0.5, "\ufffd", "\ufffd")
    assert episode and episode.turns[0].messages == (Message("user\ufffd", "so \ufffd"),)
    assert type(episode.turns[0].reward) is float and verdict.correct is True


def test_calls_run_at_once_up_to_the_bound_and_results_keep_their_order() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def call(n: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02 * (n % 3))
        with lock:
            running -= 1
        return n

    results = call_all([lambda n=n: call(n) for n in range(12)], seconds=30, at_once=3)  # type: ignore[misc]
    assert results == list(range(12)) and 1 < most <= 3
    assert call_all([], seconds=1, at_once=3) == []
    # No time limit.
    assert call_all([lambda: "so"], seconds=math.inf, at_once=1) == ["so"]


def test_an_answer_after_the_time_limit_is_ignored_though_others_still_run() -> None:
    go, gone = threading.Event(), threading.Event()

    def late() -> str:
        go.wait()
        threading.Thread(target=tell_of, args=(threading.current_thread(),)).start()
        return "late"

    def tell_of(thread: threading.Thread) -> None:
        thread.join()
        gone.set()

    def next_call() -> str:
        # Runs once the first is given up, and until its answer has come.
        go.set()
        gone.wait()
        return "next"

    first, second = call_all([late, next_call], seconds=1.0, at_once=1)
    assert (first, second) == (environments.Fault(environments.LATE), "next")


# --- the embedded world ----------------------------------------------------------------------------------------------


def test_countdown_in_turns_says_what_is_wrong_and_ends_with_a_right_attempt_or_the_last() -> None:
    task = CountdownTurnsTask()
    assert environment_of(task) is task
    example = next(e for e in task.examples("train"))
    solution, numbers, target = example.fields["solution"], example.columns["numbers"], example.columns["target"]
    state = task.start(example).state
    a, b = numbers[:2]
    first = task.reply(state, f"</think> answer {a} + {b}")
    feedback = f"{a} + {b} does not use {numbers[2]} and reaches {a + b} , not {target}"
    if numbers[2] not in (a, b) and a + b != target:
        assert first.feedback == feedback
        assert first.messages == (
            Message("user", f"feedback on an earlier attempt : {feedback} .\nnow solve the problem yourself ."),
        )
    assert (first.done, first.reward) == (False, 0.0)
    right = task.reply(state, f"</think> answer {solution}")
    assert (right.done, right.reward, right.messages) == (True, 1.0, ())
    state = task.start(example).state
    assert task.reply(state, "</think> answer no solution").done
    state = task.start(example).state
    assert [task.reply(state, "so").done for _ in range(3)] == [False, False, True]


def test_every_rank_samples_equally_often(chat: Chat) -> None:
    class World:
        """Another rank goes on for five turns."""

        turns = 0

        def max(self, value: int) -> int:
            self.turns += 1
            return int(self.turns <= 5)

    script, calls, seeds = Script(chat), [], set()

    def sample(conversations: Any, params: SamplingParams) -> list[list[Completion]]:
        calls.append(len(conversations))
        seeds.add(params.seed)
        return script(conversations, params)

    params = SamplingParams(count=3, max_tokens=16, seed=7)
    task = Spoken()
    episodes.play(examples(), task, sample, chat, params, thinking=None, world=World())  # type: ignore[arg-type]
    assert calls == [6, 4, 1, 0, 0]
    # No turn repeats the random numbers of another.
    assert len(seeds) == 5
