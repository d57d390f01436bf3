"""What a template ends an assistant's turn with is what sft teaches and what sampling stops at.

The templates have the shapes of real families, each with a tokenizer in which a wrong stop id is the lowest.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from selfdistill.contexts import chat as chat_module
from selfdistill.contexts import rendering
from selfdistill.contexts.chat import Chat
from selfdistill.models.policy import load_policy
from selfdistill.sampling.rollouts import fitting_solutions, from_solutions
from selfdistill.types import Example, Message
from support.tiny import tiny_config

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN3 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set content = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{{ '<|im_start|>assistant\n' + ('<think>\n\n</think>\n\n' if loop.last else '') + content + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_BETWEEN = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{% if (loop.last and add_generation_prompt) or not loop.last %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{{ m.content | trim }}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
ONE_QUESTION = (
    "{% if messages | length > 2 %}{{ raise_exception('one question only') }}{% endif %}" + MISTRAL
)  # refuses the turn that the end is compared with
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|User|>' + m.content }}{% else %}"
    "{{ '<|Assistant|>' + m.content.split('</think>')[-1] + '<|end_of_sentence|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
).replace("<|", "<｜").replace("|>", "｜>").replace("end_of_sentence", "end▁of▁sentence")  # fmt: skip
HARMONY = (
    "{{ '<|start|>system<|message|>be brief<|end|>' }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}{% else %}"
    "{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
TULU = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% if not loop.last %}"
    "{{ '<|assistant|>\n' + m.content + eos_token + '\n' }}{% else %}"
    "{{ '<|assistant|>\n' + m.content + eos_token }}{% endif %}{% else %}"
    "{{ '<|' + m.role + '|>\n' + m.content + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
COMMAND = (
    "{% for m in messages %}{{ '<|turn|>' + m.role }}"
    "{{ '<|say|>' + m.content + '<|said|>' if m.role == 'assistant' else m.content }}{{ '<|turned|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn|>assistant' }}{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
REFUSES = "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}{{ messages[0].content + '\n' }}"
PLAIN = (
    "{% for m in messages %}{{ '### ' + m.role + '\n' + m.content + '\n### End\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant\n' }}{% endif %}"
)
UNKNOWN = PLAIN.replace("### End", "@@@ Fin")


@dataclass(frozen=True)
class Family:
    """A template, its tokenizer's special tokens in order of their ids, what is declared, and the true end."""

    template: str
    special: tuple[str, ...]
    declared: tuple[str, ...]
    end: tuple[str, ...]
    eos: str = "<|endoftext|>"


QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BOTH = ("<|endoftext|>", "<|im_end|>")
FAMILIES = {
    "qwen2": Family(CHATML, QWEN, BOTH, ("<|im_end|>",)),
    "qwen3": Family(QWEN3, QWEN, BOTH, ("<|im_end|>",)),
    "chatml whose configs declare the end of sequence alone": Family(CHATML, QWEN, QWEN[:1], ("<|im_end|>",)),
    "chatml that ends a turn only before another": Family(CHATML_BETWEEN, QWEN, BOTH, ("<|im_end|>",)),
    "llama-3": Family(
        LLAMA3,
        ("<|begin|>", "<|end_of_text|>", "<|eom_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        ("<|eot_id|>",),
        "<|end_of_text|>",
    ),
    "gemma-3": Family(
        GEMMA3,
        ("<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        ("<eos>", "<end_of_turn>"),
        ("<end_of_turn>",),
        "<eos>",
    ),
    "phi-3": Family(
        PHI3,
        ("<|endoftext|>", "<|assistant|>", "<|user|>", "<|end|>"),
        ("<|endoftext|>", "<|end|>"),
        ("<|end|>",),
    ),
    "phi-3 whose configs declare the end of sequence alone": Family(
        PHI3, ("<|endoftext|>", "<|assistant|>", "<|user|>", "<|end|>"), ("<|endoftext|>",), ("<|end|>",)
    ),
    "mistral": Family(MISTRAL, ("<pad>", "<s>", "[INST]", "[/INST]", "</s>"), ("<pad>", "</s>"), ("</s>",), "</s>"),
    "mistral of one question": Family(ONE_QUESTION, ("<pad>", "<s>", "</s>"), ("<pad>", "</s>"), ("</s>",), "</s>"),
    "deepseek-r1": Family(
        DEEPSEEK_R1,
        ("<|eot|>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
        ("<|eot|>", "<｜end▁of▁sentence｜>"),
        ("<｜end▁of▁sentence｜>",),
        "<｜end▁of▁sentence｜>",
    ),
    "gpt-oss": Family(
        HARMONY,
        ("<|endoftext|>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"),
        ("<|endoftext|>", "<|return|>", "<|call|>"),
        ("<|return|>",),
        "<|return|>",
    ),
    "tulu": Family(
        TULU, ("<pad>", "<|user|>", "<|assistant|>", "<|endoftext|>"), ("<pad>", "<|endoftext|>"), ("<|endoftext|>",)
    ),
    "command": Family(
        COMMAND,
        ("<|endoftext|>", "<|turn|>", "<|say|>", "<|said|>", "<|turned|>"),
        ("<|endoftext|>", "<|turned|>"),
        ("<|said|>", "<|turned|>"),
    ),
    "no end": Family(NO_END, ("<pad>", "<|user|>", "<|endoftext|>"), ("<pad>", "<|endoftext|>"), ("<|endoftext|>",)),
    "refuses": Family(REFUSES, ("<pad>", "<|endoftext|>"), ("<pad>", "<|endoftext|>"), ("<|endoftext|>",)),
    "plain words": Family(
        PLAIN, ("<pad>", "<|endoftext|>"), ("<pad>", "<|endoftext|>"), ("###", "End", "<|endoftext|>")
    ),
    "words that it cannot spell": Family(
        UNKNOWN, ("<pad>", "<|endoftext|>"), ("<pad>", "<|endoftext|>"), ("<|endoftext|>",)
    ),
}
WORDS = ("<unk>", "make", "9", "is", "5", "+", "4", "###", "End", "user", "assistant", "<think>", "</think>")


def tokenizer_of(family: Family) -> PreTrainedTokenizerFast:
    entries = (*family.special, *WORDS)
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(entries)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=family.eos,
        unk_token="<unk>",
        bos_token=family.special[0],
        clean_up_tokenization_spaces=False,
    )
    fast.add_special_tokens({"additional_special_tokens": list(family.special)})
    fast.chat_template = family.template
    return fast


def saved(family: Family, folder: Path) -> Path:
    """A model directory of the family, as a user has it."""
    tokenizer = tokenizer_of(family)
    model = Qwen3ForCausalLM(tiny_config(eos_token_id=None))
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(list(family.declared))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def chat_of(name: str) -> Chat:
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family)
    stop_ids = sorted(family.special.index(token) for token in family.declared)
    return Chat(tokenizer, stop_ids=stop_ids, window=64, name=name)


def words(chat: Chat, ids: Sequence[int]) -> list[str]:
    return list(chat.tokenizer.convert_ids_to_tokens(list(ids)))


EXAMPLES = [Example("one", (Message("user", "make 9"),), {"solution": "9 is 5 + 4"})]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_response_ends_as_the_template_ends_a_turn(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    folder = saved(family, tmp_path)
    _, chat = load_policy(str(folder), dtype=torch.float32, device=torch.device("cpu"))
    (rollout,) = from_solutions(EXAMPLES, chat, thinking=None)[0].rollouts
    assert words(chat, rollout.completion_ids) == ["9", "is", "5", "+", "4", *family.end]
    # Sampling stops at the end that is taught, and still at every end that the configs declare.
    assert set(words(chat, chat.stop_ids)) == {*family.declared, family.eos, family.end[-1]}
    assert len(set(chat.stop_ids)) == len(chat.stop_ids)


REFUSE = {"mistral of one question", "refuses"}
"""Templates that refuse a second question."""
REWRITE = {"deepseek-r1", "gpt-oss", "command", "no end", "words that it cannot spell"}
"""Templates whose earlier turns are not as sampled: without the thought, or with another end."""


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - REFUSE - REWRITE))
def test_a_reply_follows_the_one_end_of_the_turn_before_it(name: str) -> None:
    chat = chat_of(name)
    opening, reply = (Message("user", "why"),), (Message("user", "and now"),)
    whole = chat.encode((*opening, Message("assistant", "yes"), *reply))
    sampled = [*chat.encode(opening), *chat.response("yes")]
    # An end of sequence behind an end in plain words is the sampler's own.
    ids = [*(sampled[:-1] if name == "plain words" else sampled), *chat.after_turn(opening, reply)]
    assert words(chat, ids) == words(chat, whole)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_text_is_what_stands_before_the_turn_end_or_any_stop_id(name: str) -> None:
    chat = chat_of(name)
    body = chat.tokenizer("9 is 5 + 4")["input_ids"]
    assert chat.decode([*body, *chat.turn_end]) == "9 is 5 + 4"
    for stop in chat.stop_ids:
        assert chat.decode([*body, stop]) == "9 is 5 + 4"
    assert chat.decode(body) == "9 is 5 + 4"
    assert chat.decode([]) == ""


def test_the_template_itself_renders_what_is_taught() -> None:
    """The equality behind the tests above: prompt and response are the beginning of the rendered conversation."""
    for name in ("qwen2", "llama-3", "gemma-3", "phi-3", "tulu", "plain words"):
        chat = chat_of(name)
        turns = [{"role": "user", "content": "make 9"}, {"role": "assistant", "content": "9 is 5 + 4"}]
        text = chat.tokenizer.apply_chat_template(turns, tokenize=False)
        whole = chat.tokenizer(text, add_special_tokens=False)["input_ids"]
        taught = [*chat.encode([Message("user", "make 9")]), *chat.response("9 is 5 + 4")]
        assert whole[: len(taught)] == taught[: len(whole)], name
        assert len(taught) - len(whole) == {"plain words": 1, "phi-3": -1}.get(name, 0), name


def test_the_turn_end_counts_in_what_fits_the_window() -> None:
    chat = chat_of("plain words")
    length = len(chat.encode(EXAMPLES[0].prompt)) + 5 + 3
    chat.window = length
    assert len(fitting_solutions(EXAMPLES, chat, thinking=None)[0]) == 1


def test_only_a_turn_end_in_plain_words_is_remarked_on() -> None:
    assert {name for name in FAMILIES if chat_of(name).warnings()} == {"plain words"}
    assert chat_of("plain words").warnings() == [
        "the chat template of plain words ends a turn with '### End', which is no single token: "
        "completions end at '<|endoftext|>' alone, which sft teaches behind those words"
    ]


def test_the_time_limit_of_a_template_leaves_the_caller_s_alarm() -> None:
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    signal.setitimer(signal.ITIMER_REAL, 3600.0)
    try:
        assert chat_of("qwen2").encode([Message("user", "make 9")])
        left, _ = signal.getitimer(signal.ITIMER_REAL)
        assert left > rendering.SECONDS
        signal.raise_signal(signal.SIGALRM)
        assert rung == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_rendered_prompts_are_remembered_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_module, "REMEMBERED", 3)
    chat = chat_of("qwen2")
    rendered: list[str] = []
    plain = chat.tokenizer.apply_chat_template

    def counted(turns: Sequence[dict[str, str]], **how: object) -> str:
        rendered.append(turns[-1]["content"])
        return str(plain(turns, **how))

    monkeypatch.setattr(chat.tokenizer, "apply_chat_template", counted)
    for text in ("a", "b", "a", "c", "d", "a", "b"):
        assert chat.encode([Message("user", text)]) == chat.encode([Message("user", text)])
    # "a" was asked for again before the fourth came, so "b" was the one to go.
    assert rendered == ["a", "b", "c", "d", "b"]
