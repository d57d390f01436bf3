"""Colours a completion by token: aligns its tokens with its text, and computes the tint of each token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from selfdistill.files.records import RolloutLine
from selfdistill.report import numbers
from selfdistill.types import Episode

MOST_TOKENS = 3000
"""Maximum tokens of a completion on a page; longer ones are cut, with a note. Twelve of this length are about 5 MB."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A token as it appears in the text: the whitespace before it, and its characters.

    ``unseen`` marks a token that the text does not contain (an end-of-sequence or chat token).
    """

    before: str
    body: str
    unseen: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """A piece with its tint: ``side`` is "p", "n" or empty; ``strength`` is 0 to 100 percent of the scale."""

    piece: Piece
    side: str
    strength: int
    u: str
    logprob: str
    said: str = ""
    """What the environment said before it, at the start of a turn of an episode."""


@dataclass(frozen=True, slots=True)
class Coloured:
    """A completion as the page shows it."""

    example: str
    index: str
    verdict: str
    reward: str
    prompt: str
    feedback: str
    length: int
    total_u: str
    tokens: tuple[Token, ...]
    note: str


def said_before(episode: Episode | None) -> dict[int, str]:
    """What the environment said between the turns of an episode, by the index of the token that follows it."""
    said: dict[int, str] = {}
    own = 0
    for turn in episode.turns if episode else ():
        own += turn.tokens
        if turn.ids:
            words = (f"{message.role}: {message.content}" for message in turn.messages)
            said[own] = numbers.printable("\n".join(words))
    return said


def align(text: str, tokens: Sequence[str]) -> list[Piece]:
    """Locate every token in the text, which restores the spaces between decoded words.

    A token that is decoded alone may lose its space (word tokenizers) or be absent from the text (special tokens). If
    the tokens do not cover the whole text (half a character per token), they are returned as they are.
    """
    pieces: list[Piece] = []
    cursor = 0
    for token in tokens:
        core = token.strip()
        word = next(i for i in range(cursor, len(text) + 1) if not text[i : i + 1].isspace())
        if token and text.startswith(token, cursor):
            pieces.append(Piece("", token))
            cursor += len(token)
        elif core and text.startswith(core, word):
            pieces.append(Piece(text[cursor:word], core))
            cursor = word + len(core)
        else:
            pieces.append(Piece("", token, unseen=bool(core)))
    return pieces if not text[cursor:].strip() else [Piece("", token) for token in tokens]


def scale_limit(values: Iterable[float], *, share: float = 0.95) -> float:
    """Return the |u| of full colour: a quantile, rounded to two digits, so that one outlier does not fade the rest."""
    sizes = sorted(abs(value) for value in values)
    if not sizes or sizes[-1] == 0:
        return 1.0
    limit = sizes[min(len(sizes) - 1, int(share * len(sizes)))] or sizes[-1]
    return float(f"{limit:.2g}")


def tint(u: float | None, limit: float) -> tuple[str, int]:
    """Return the side and the strength of a token's colour, which is linear in u and full at the limit."""
    if u is None or u == 0:
        return "", 0
    return ("p" if u > 0 else "n"), round(100 * min(1.0, abs(u) / limit))


def colour(line: RolloutLine, limit: float) -> Coloured:
    """Return a line of ``rollouts.jsonl`` as the page shows it. Lists of the wrong length become a note."""
    text = numbers.printable(line.text)
    words = [numbers.printable(token) for token in line.tokens]
    pieces = align(text, words) if words else [Piece("", text)]
    notes: list[str] = []
    if not words:
        notes.append("This completion was written without its tokens, so it has no colours.")
    u = _per_token(line.u, "u", len(words), notes)
    logprobs = _per_token(line.logprobs or None, "logprobs", len(words), notes)
    if len(pieces) > MOST_TOKENS:
        notes.append(f"Only the first {MOST_TOKENS:,} of {len(pieces):,} tokens are shown.")
    said = said_before(line.episode)
    finite_u = [value for value in u if value is not None]
    reward = line.reward
    return Coloured(
        example=numbers.printable(line.example),
        index=str(line.index),
        verdict="unjudged" if reward is None else "correct" if line.correct else "wrong" if reward <= 0 else "partly",
        reward=numbers.MISSING if reward is None else f"{reward:z.3g}".replace("-", numbers.MINUS),
        prompt=numbers.printable(line.prompt).strip(),
        feedback=numbers.printable(line.feedback or "").strip(),
        length=len(words),
        total_u=numbers.signed(sum(finite_u)) if finite_u else "",
        tokens=tuple(
            Token(
                piece,
                *tint(gain, limit),
                numbers.signed(gain, decimals=3),
                numbers.signed(logprob, decimals=3),
                said.get(n, ""),
            )
            for n, (piece, gain, logprob) in enumerate(zip(pieces[:MOST_TOKENS], u, logprobs, strict=False))
        ),
        note=" ".join(notes),
    )


def token_values(line: RolloutLine) -> list[float]:
    """Return the finite values of u of a completion; empty if no teacher scored it."""
    return [value for value in line.u or () if value is not None]


def choose(lines: Sequence[RolloutLine], count: int) -> list[RolloutLine]:
    """Choose completions: first pairs of a correct and a wrong one of the same problem, then both kinds alternately.

    Two answers to one problem show the signal best. The choice follows the order of the file, so the same run always
    has the same page.
    """
    by_example: dict[str, tuple[list[RolloutLine], list[RolloutLine]]] = {}
    for line in lines:
        right, wrong = by_example.setdefault(line.example, ([], []))
        (right if line.correct else wrong).append(line)
    pairs = [(right[0], wrong[0]) for right, wrong in by_example.values() if right and wrong]
    chosen = [line for pair in pairs for line in pair][:count]
    taken = {id(line) for line in chosen}
    right = [line for kind, _ in by_example.values() for line in kind if id(line) not in taken]
    wrong = [line for _, kind in by_example.values() for line in kind if id(line) not in taken]
    for i in range(max(len(right), len(wrong))):
        chosen += right[i : i + 1] + wrong[i : i + 1]
    return chosen[:count]


def _per_token(values: Sequence[float | None] | None, key: str, length: int, notes: list[str]) -> list[float | None]:
    if values is None or not length:
        return [None] * max(length, 1)
    if len(values) != length:
        notes.append(f"{key} has {len(values)} values for {length} tokens and is not shown.")
        return [None] * length
    return list(values)
