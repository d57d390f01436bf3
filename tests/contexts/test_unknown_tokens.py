"""A tokenizer that does not know the words of the rows."""

from __future__ import annotations

import pytest

from selfdistill.contexts.chat import LOOKED_AT, Chat
from selfdistill.types import Message
from support.tiny import STOP, tiny_tokenizer


def chat() -> Chat:
    return Chat(tiny_tokenizer(), stop_ids=[STOP], window=64, name="tiny")


def asked(*texts: str) -> list[tuple[Message, ...]]:
    return [(Message("user", text),) for text in texts]


@pytest.mark.parametrize(
    ("texts", "share"),
    [
        (("use the numbers 3 4",), None),
        (("use the numbers 3 Gödel",), None),  # one word of five is a fifth, which is not more than a fifth
        (("use the numbers Gödel",), "25%"),
        (("use the", "Kurt Gödel proved it"), "67%"),
        (("Gödel",), "100%"),
        ((), None),
        (("",), None),
    ],
)
def test_a_large_share_of_unknown_tokens_is_a_warning(texts: tuple[str, ...], share: str | None) -> None:
    found = chat().unknown_warnings(asked(*texts))
    assert [warning.split()[1] for warning in found] == ([] if share is None else [share])
    assert chat().warnings(asked(*texts)) == found
    assert all("unknown to the tokenizer of tiny, which reads '<unk>' for each" in warning for warning in found)


def test_only_the_first_prompts_are_looked_at() -> None:
    assert chat().unknown_warnings(asked(*["use"] * LOOKED_AT, *["Gödel"] * LOOKED_AT)) == []


def test_a_tokenizer_of_bytes_knows_everything() -> None:
    bytewise = chat()
    bytewise.tokenizer.unk_token = None
    assert bytewise.unknown_warnings(asked("Gödel")) == []
