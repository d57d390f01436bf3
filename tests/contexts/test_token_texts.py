"""The text of single tokens keeps its spaces and characters, whatever a tokenizer does with them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from selfdistill.contexts.chat import Chat
from selfdistill.report.tokens import align

WORDS = ("▁the", "▁dog", "▁says", "s", "▁", ",", "a", "▁▁", "é")
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def chat_of(tokenizer: Tokenizer) -> Chat:
    """A chat around a tokenizer, whose end of sequence is ``</s>``."""
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    fast.chat_template = "{% for m in messages %}{{ m.content + '</s>' }}{% endfor %}"
    return Chat(fast, stop_ids=[fast.eos_token_id], window=256, name="a tokenizer")


def mistral_like() -> Chat:
    """Sentencepiece as Mistral and Llama-2 have it: ``▁`` for a space, bytes for characters that are no piece."""
    pieces = [("<unk>", 0.0), *((byte, -20.0) for byte in BYTES), *((word, -float(len(WORDS))) for word in WORDS)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return chat_of(tokenizer)


def byte_level() -> Chat:
    """Bytes under other signs, as Qwen and GPT-2 have it, with a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e")]
    entries = [*alphabet, *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={entry: i for i, entry in enumerate(entries)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return chat_of(tokenizer)


@pytest.mark.parametrize("made", [mistral_like, byte_level])
@pytest.mark.parametrize("said", ["the dog says the", "the  dog, 好 the 🐕s", "é好🐕", "a好"])
def test_the_texts_of_tokens_are_together_the_text(said: str, made: Callable[[], Chat]) -> None:
    chat = made()
    ids = chat.response(said)
    told = chat.tokens(ids)
    assert len(told) == len(ids)
    assert "".join(told) == f"{said}</s>"
    shown = align(chat.decode(ids), told)
    assert "".join(piece.before + piece.body for piece in shown if not piece.unseen) == said


def test_a_token_keeps_its_space_and_a_character_is_told_once() -> None:
    chat = mistral_like()
    tokenizer = chat.tokenizer
    ids = tokenizer.convert_tokens_to_ids(["▁the", "▁dog", "s", "<0xE5>", "<0xA5>", "<0xBD>", "▁says", "</s>"])
    assert chat.tokens(ids) == ["the", " dog", "s", "", "", "好", " says", "</s>"]
    # A completion that was cut inside a character, and bytes that never become one.
    assert chat.tokens(ids[:5]) == ["the", " dog", "s", "", "\ufffd\ufffd"]
    assert chat.tokens([ids[3], ids[0], ids[1]]) == ["", "\ufffd the", " dog"]


def test_a_token_alone_keeps_its_space_and_half_a_character_its_name() -> None:
    chat = mistral_like()
    ids = chat.tokenizer.convert_tokens_to_ids(["▁dog", "s", "<0xE5>", "▁", "</s>"])
    assert [chat.word(token) for token in ids] == [" dog", "s", "<0xE5>", " ", "</s>"]
