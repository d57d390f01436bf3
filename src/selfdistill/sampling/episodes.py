"""Play episodes: the model's turns are sampled, the environment replies, and the conversation goes on as token ids.

The prompt of a turn is what was sampled so far, with the ids that the chat template writes for the new messages. No
earlier turn is rendered or tokenised again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias, TypeVar

from selfdistill.contexts.chat import Chat
from selfdistill.distributed.world import ALONE, World
from selfdistill.errors import ModelError
from selfdistill.sampling.base import SamplingParams
from selfdistill.sampling.environments import Fault, call_all, open_more_files, read_reply, read_start
from selfdistill.seeds import derive
from selfdistill.tasks.episode_loop import EpisodeLoop
from selfdistill.tasks.turns import AT_ONCE, MAX_TURNS, SECONDS, Environment
from selfdistill.tracking.progress import activity, log
from selfdistill.types import (
    Completion,
    Episode,
    Example,
    Message,
    Reply,
    Rollout,
    RolloutGroup,
    Start,
    Turn,
    Verdict,
)
from selfdistill.types.conversation import DONE

TURN_LIMIT = "the turn limit was reached"
CUT = "a turn was cut by the token limit"
NO_ROOM = "the conversation fills the window"
UNRENDERED = "the chat template cannot render what the environment said"

NO_OPENING = "the opening of the conversation does not fit the window"

LIMITS = (TURN_LIMIT, CUT, NO_ROOM)
"""Reasons for which an episode ends unfinished, and is judged by what it earned until then."""
CUT_FEEDBACK = "the attempt was cut before the end"

Sample: TypeAlias = "Callable[[Sequence[tuple[int, ...]], SamplingParams], list[list[Completion]]]"
"""Samples the next turn of some conversations. Every rank calls it equally often."""
T = TypeVar("T")


@dataclass(slots=True)
class _Playing:
    """An episode that is being played."""

    example: Example
    ordinal: int
    """Its index among all episodes of the step."""
    state: object
    opening: tuple[Message, ...]
    prompt: tuple[int, ...]
    ended: str = ""
    """Why it ended; empty while it goes on."""
    conversation: list[int] = field(default_factory=list)
    """All ids of the conversation so far."""
    turns: list[Turn] = field(default_factory=list)
    completion_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    answer: str | None = None
    success: bool | None = None
    anchor: str | None = None
    """The environment's name of the state in which the first turn is taken."""
    note: str | None = None
    """What the environment wrote for later steps."""
    why: str = ""
    """What is to be logged of its end."""
    cut: bool = False
    """Whether the token limit cut its last turn."""
    loop: EpisodeLoop = field(default_factory=EpisodeLoop)
    """Where the environment's coroutines run."""
    begun: bool = True
    """Whether the environment started it."""
    open: bool = True
    """Whether the environment was not told yet that the episode has ended."""

    def rollout(self, chat: Chat, version: int) -> Rollout:
        """The episode as a rollout."""
        return Rollout(
            prompt_ids=self.prompt,
            completion_ids=tuple(self.completion_ids),
            logprobs=tuple(self.logprobs),
            finished=self.ended not in LIMITS and not self.cut,
            text=chat.decode(self.completion_ids),
            policy_version=version,
            episode=Episode(self.opening, tuple(self.turns), self.ended, self.anchor, self.note),
        )

    def verdict(self, *, judges: bool) -> Verdict:
        """The sum of the rewards. It is None if nothing was rewarded, or if a fault of the environment ended it.

        ``judges`` says that its replies give rewards: an episode that a limit ended without a reward then earned 0.
        """
        rewards = [turn.reward for turn in self.turns if turn.reward is not None]
        feedback = next((turn.feedback for turn in reversed(self.turns) if turn.feedback), None)
        if self.ended not in (DONE, *LIMITS):
            return Verdict(None, feedback=feedback)
        if self.ended == CUT:
            feedback = CUT_FEEDBACK
        earned = math.fsum(rewards) if rewards else 0.0 if judges and self.ended in LIMITS else None
        return Verdict(earned, self.answer, feedback, success=self.success if earned is not None else None)


def play(
    examples: Sequence[Example],
    environment: Environment,
    sample: Sample,
    chat: Chat,
    params: SamplingParams,
    *,
    thinking: bool | None,
    version: int = 0,
    world: World = ALONE,
) -> list[RolloutGroup]:
    """Play ``params.count`` episodes of every example; returns one group per example.

    ``params.max_tokens`` limits a turn. An episode whose environment fails ends with the reason, and no other is
    affected. What is sampled depends on the seed, the episode's place in the step and the environment's replies alone.
    """
    # An episode may hold an event loop and connections open, and all episodes of a step are played at once.
    open_more_files()
    # Start every episode. One that cannot be started samples its first turn all the same, so that groups are whole.
    ordinals = params.ordinals if params.ordinals is not None else range(len(examples))
    pairs = list(zip(examples, ordinals, strict=True))
    places = [(example, n * params.count + k) for example, n in pairs for k in range(params.count)]
    loops = [EpisodeLoop() for _ in places]
    with activity("starting the environments"):
        results = _call(environment, [partial(environment.start, example) for example, _ in places], loops, read_start)
    episodes = [
        _started(*place, result, loop, chat, thinking, params.max_tokens)
        for place, result, loop in zip(places, results, loops, strict=True)
    ]
    _log_faults(environment, [Fault(episode.ended, episode.why) for episode in episodes if episode.why])
    # Turn by turn: sample, let the environments reply, and go on with the episodes that have not ended.
    active, turn = list(episodes), 0
    try:
        while world.max(int(bool(active))):
            turn += 1
            turn_params = replace(
                params, count=1, seed=derive(params.seed, "turn", turn), ordinals=[one.ordinal for one in active]
            )
            completions = sample([tuple(episode.conversation) for episode in active], turn_params)
            for episode, (completion,) in zip(active, completions, strict=True):
                _add_turn(episode, completion, chat)
            active = _replied(environment, active, chat, thinking, params.max_tokens)
            _end(environment, [episode for episode in episodes if episode.ended])
    finally:
        _end(environment, episodes)
    # One group per example.
    rollouts = [episode.rollout(chat, version) for episode in episodes]
    verdicts = [episode.verdict(judges=environment.has_verifier) for episode in episodes]
    starts = range(0, len(episodes), params.count)
    return [
        RolloutGroup(example, tuple(rollouts[i : i + params.count]), tuple(verdicts[i : i + params.count]))
        for example, i in zip(examples, starts, strict=True)
    ]


def _replied(
    environment: Environment, active: Sequence[_Playing], chat: Chat, thinking: bool | None, max_tokens: int
) -> list[_Playing]:
    """Let the environment reply to the last turns of the episodes that go on; returns those that still do."""
    replying = [episode for episode in active if not episode.ended]
    with activity("waiting for the environments"):
        calls = [partial(environment.reply, episode.state, episode.turns[-1].text) for episode in replying]
        replies = _call(environment, calls, [episode.loop for episode in replying], read_reply)
    for episode, reply in zip(replying, replies, strict=True):
        _add_reply(episode, reply, environment, chat, thinking, max_tokens)
    _log_faults(environment, [Fault(episode.ended, episode.why) for episode in replying if episode.why])
    return [episode for episode in replying if not episode.ended]


def _end(environment: Environment, episodes: Sequence[_Playing]) -> None:
    """Tell the environment once of every episode that nothing follows, and close the loop of its coroutines."""
    opened = [episode for episode in episodes if episode.open]
    for episode in opened:
        episode.open = False
    end = getattr(environment, "end", None)
    with activity("ending the episodes"):
        # An attribute of this name may be something of the environment's own.
        if callable(end):
            begun = [episode for episode in opened if episode.begun]
            loops = [episode.loop for episode in begun]
            _call(environment, [partial(end, episode.state) for episode in begun], loops, lambda result: result)
        used = [episode.loop for episode in opened if episode.loop.used]
        _call(environment, [loop.close for loop in used], (), lambda result: result)


def _call(
    environment: Environment,
    calls: Sequence[Callable[[], object]],
    loops: Sequence[EpisodeLoop],
    read: Callable[[object], T | Fault],
) -> list[T | Fault]:
    """Call an environment within its limits, read what it returns, and log the first fault of each kind."""
    seconds, at_once = getattr(environment, "seconds", SECONDS), getattr(environment, "at_once", AT_ONCE)
    results: list[T | Fault] = call_all(
        calls, seconds=float(seconds), at_once=max(1, int(at_once)), read=read, loops=loops
    )
    _log_faults(environment, [result for result in results if isinstance(result, Fault)])
    return results


def _log_faults(environment: Environment, faults: Sequence[Fault]) -> None:
    for fault in {fault.reason: fault for fault in reversed(faults)}.values():
        log(f"{type(environment).__name__}: {fault.reason}" + (f": {fault.error}" if fault.error else ""))


def _started(
    example: Example,
    ordinal: int,
    start: tuple[Start, tuple[Message, ...]] | Fault,
    loop: EpisodeLoop,
    chat: Chat,
    thinking: bool | None,
    max_tokens: int,
) -> _Playing:
    """An episode before its first turn. One that cannot be used has ended, with the example's prompt as its opening."""
    reason, (begun, messages) = (start.reason, (Start(), ())) if isinstance(start, Fault) else ("", start)
    opening, why = messages or example.prompt, ""
    try:
        prompt = chat.encode(opening, thinking=thinking)
        if opening[-1].role != "user":
            reason, why = UNRENDERED, f"the opening ends with a message of {opening[-1].role!r}, not of 'user'"
        elif len(prompt) + max_tokens > chat.window:
            reason = NO_OPENING
            why = f"it has {len(prompt)} tokens and a turn may have {max_tokens}, of {chat.window}"
    except ModelError as error:
        reason, why = UNRENDERED, str(error)
    if reason:
        opening, prompt = example.prompt, chat.encode(example.prompt, thinking=thinking)
    episode = _Playing(example, ordinal, begun.state, opening, prompt, reason, list(prompt), anchor=begun.anchor)
    episode.why, episode.loop, episode.begun = why, loop, not isinstance(start, Fault)
    return episode


def _add_turn(episode: _Playing, completion: Completion, chat: Chat) -> None:
    """Add a sampled turn to an episode."""
    episode.completion_ids += completion.ids
    episode.conversation += completion.ids
    episode.logprobs += completion.logprobs
    episode.turns.append(Turn(len(completion.ids), chat.decode(completion.ids)))
    episode.cut = not completion.finished
    if episode.cut and not episode.ended:
        episode.ended = CUT


def _add_reply(
    episode: _Playing,
    reply: tuple[Reply, tuple[Message, ...]] | Fault,
    environment: Environment,
    chat: Chat,
    thinking: bool | None,
    max_tokens: int,
) -> None:
    """Add what the environment answered, and the ids of its messages if the episode goes on."""
    if isinstance(reply, Fault):
        episode.ended = reply.reason
        return
    answer, messages = reply
    turn = replace(
        episode.turns[-1],
        reward=answer.reward,
        feedback=answer.feedback,
        messages=messages,
        anchor=answer.anchor,
        error=answer.error,
    )
    episode.answer, episode.success = answer.answer, answer.success
    episode.note = answer.note or episode.note
    if answer.done:
        episode.ended = DONE
    elif len(episode.turns) >= int(getattr(environment, "max_turns", MAX_TURNS)):
        episode.ended = TURN_LIMIT
    else:
        try:
            ids = chat.after_turn(episode.opening, messages, thinking=thinking)
        except ModelError as error:
            episode.ended, episode.why = UNRENDERED, str(error)
        else:
            if len(episode.conversation) + len(ids) + max_tokens > chat.window:
                episode.ended = NO_ROOM
            else:
                turn = replace(turn, ids=ids)
                episode.conversation += ids
    episode.turns[-1] = turn
