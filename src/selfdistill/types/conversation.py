"""The messages of a conversation, and the turns of an episode: an example played against an environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message, for example ``Message("user", "use the numbers 3 5 7 to make 26 .")``.

    The role ``"tools"`` is not a turn. Its content is the JSON list of tool schemas for the chat template.
    """

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Start:
    """How an episode starts."""

    state: object = None
    """Whatever the environment keeps of this episode. It is given back with every turn."""
    messages: Sequence[Message] | str = ()
    """The opening of the conversation; empty: the example's prompt. A text is one message of the user."""
    anchor: str | None = None
    """The name of the state in which the first turn is taken; None: what the model reads."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What an environment answers to a turn of the model."""

    messages: Sequence[Message] | str = ()
    """What the model reads before its next turn. A text is one message of the user."""
    done: bool = False
    """Whether the episode ends with this turn."""
    reward: float | None = None
    """The reward of this turn; an episode's reward is the sum over its turns."""
    feedback: str | None = None
    """A text about a failure, for contexts in hindsight."""
    answer: str | None = None
    """Canonical form of the final answer, as of a :class:`~selfdistill.types.Verdict`."""
    success: bool | None = None
    """Whether the episode counts as right; None: if it earned 1."""
    anchor: str | None = None
    """The name of the state in which the next turn is taken; None: what the model reads before it. Group-in-group
    advantages compare the turns that the episodes of a group took in the same state."""
    error: bool | None = None
    """Whether it answers the turn with an error, such as a refused call of a tool. Errors are counted; None: it does
    not say."""
    note: str | None = None
    """What contexts of later steps may be told because of this episode, for example a rule; the last one counts."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of the model, and what the environment answered."""

    tokens: int
    """Number of the model's own tokens."""
    text: str
    reward: float | None = None
    feedback: str | None = None
    messages: tuple[Message, ...] = ()
    """What the environment said after the turn."""
    ids: tuple[int, ...] = ()
    """The token ids of ``messages``, up to the start of the next turn; empty after the last turn."""
    anchor: str | None = None
    """The environment's name of the state in which the next turn is taken, or None."""
    error: bool | None = None
    """Whether the environment answered with an error; None: it does not say."""


@dataclass(frozen=True, slots=True)
class Episode:
    """The conversation of a rollout in turns."""

    opening: tuple[Message, ...]
    """The messages before the first turn."""
    turns: tuple[Turn, ...]
    ended: str
    """Why the episode ended: :data:`DONE`, or what cut it."""
    anchor: str | None = None
    """The environment's name of the state in which the first turn is taken, or None."""
    note: str | None = None
    """What the environment wrote for later steps, or None."""

    @property
    def errors(self) -> int | None:
        """The turns that were answered with an error; None if the environment says it of no turn."""
        said = [turn.error for turn in self.turns if turn.error is not None]
        return sum(said) if said else None

    @property
    def anchors(self) -> tuple[tuple[bool, str], ...]:
        """The state in which each turn was taken: (whether the environment named it, its name or what was read)."""
        before = [(self.anchor, self.opening), *((turn.anchor, turn.messages) for turn in self.turns[:-1])]
        return tuple(
            (True, name) if name is not None else (False, "\n".join(message.content for message in messages))
            for name, messages in before
        )

    def reply_after(self, turn: int) -> str:
        """What the environment said after a turn, counted from 0: its feedback, or else its messages; may be empty."""
        reply = self.turns[turn]
        return reply.feedback or "\n".join(message.content for message in reply.messages)


DONE = "done"
"""Why an episode ended that the environment ended itself."""

Gaps: TypeAlias = tuple[tuple[int, tuple[int, ...]], ...]
"""Token ids between the turns of a completion: (the model's own tokens before them, the ids)."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """The prompt of a role that sees other words of the environment than the student, and those words, as token ids."""

    ids: tuple[int, ...]
    gaps: Gaps


def gaps_of(turns: Sequence[Turn]) -> Gaps:
    """What stands between the turns of an episode."""
    gaps, end = [], 0
    for turn in turns:
        end += turn.tokens
        if turn.ids:
            gaps.append((end, turn.ids))
    return tuple(gaps)


def with_gaps(completion_ids: tuple[int, ...], gaps: Gaps) -> tuple[int, ...]:
    """The completion's ids with the ids between its turns."""
    if not gaps:
        return completion_ids
    ids: list[int] = []
    begin = 0
    for end, between in gaps:
        ids += [*completion_ids[begin:end], *between]
        begin = end
    return (*ids, *completion_ids[begin:])


def turn_numbers(count: int, gaps: Gaps) -> tuple[int, ...]:
    """The turn of each of ``count`` own tokens, from 1."""
    return tuple(1 + sum(end <= n for end, _ in gaps) for n in range(count))


def segments_of(count: int, gaps: Gaps) -> tuple[int, ...]:
    """The turn of each id of :func:`with_gaps`, from 1; 0 for ids that are not the model's own."""
    # The segment ids are interleaved as the tokens are, with zeros between the turns.
    return with_gaps(turn_numbers(count, gaps), tuple((end, (0,) * len(ids)) for end, ids in gaps))
