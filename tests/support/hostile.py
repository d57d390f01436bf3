"""Completions that a model should not write and does: generated from a seed, for every kind of task."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from selfdistill.contexts.chat import Chat
from selfdistill.contexts.control_marks import MARKS as CONTROL
from selfdistill.contexts.thinking import MARKS as THINKING
from selfdistill.sampling.base import SamplingParams
from selfdistill.types import Completion

STRANGE = (
    *("\x00", "\x07", "\x1b[2J", "\x1b]0;title\x07", "\x7f", "\x85", "\x9b31m", "\ufeff", "\ufffe", "\uffff"),
    *("\u202e", "\u2066", "\u200e", "\u061c", "\u2028", "\u2029", "\u200b", "e" + "\u0301" * 40, "\U0010ffff"),
    *(
        "🏳️‍🌈",
        "６",
        "٣",
        "½",
        "²",
        "\r",
        "\r\n",
        "\v",
        "\f",
        "\t" * 30,
        " " * 300,
        "\\ud800",
        "&#0;",
        "</script><script>",
    ),
    *("<!--", "]]>", "${x}", "$question", "{{ 7*7 }}", "%s%n", "\\", "\\N{DIGIT SIX}"),
)
NUMBERS = (
    *(
        "9" * 400,
        "-" * 50 + "1",
        "1e999999999",
        "10^{10^{10}}",
        "2^{2^{2^{2^{2^2}}}}",
        "1/0",
        "0/0",
        "-0",
        "nan",
        "inf",
    ),
    *(
        "\\infty",
        "0." + "0" * 300 + "1",
        "1_000",
        "0x1F",
        "1,,2",
        "\\frac{1}{\\frac{1}{\\frac{1}{0}}}",
        "99999!",
        "7!!!",
    ),
    *(
        "(" * 200 + "7" + ")" * 200,
        "\\sqrt{" * 60 + "7" + "}" * 60,
        "7" + "^7" * 30,
        "\\binom{10^9}{10^8}",
        "7^{-10^9}",
    ),
)
MATH = (
    *(
        "\\boxed{",
        "\\boxed{" * 200,
        "\\boxed{\\boxed{7}}",
        "\\boxed{7",
        "\\boxed7",
        "\\boxed{}",
        "\\boxed{\\boxed{}",
        "}" * 50,
    ),
    *(
        "\\fbox{",
        "$",
        "$$",
        "\\(",
        "\\[",
        "\\begin{pmatrix}",
        "\\begin{pmatrix}1&2\\\\3\\end{pmatrix}",
        "\\left(",
        "\\text{",
    ),
    *(
        "The answer is ",
        "answer is x" + " " * 400,
        "####",
        "<answer>",
        "</answer>",
        "**Answer**",
        "\\boxed{\\text{7 cm}}",
    ),
    *("\\boxed{x" + "+x" * 200 + "}", "\\boxed{[1,2)}", "\\boxed{x \\in \\emptyset}", "\\boxed{\\sum_{n=1}^{10^9} n}"),
    *("\\boxed{\\int e^{x^2} dx}", "\\boxed{" + "a" * 300 + "}", "\\boxed{f(x)=f(f(f(x)))}", "\\boxed{7 = 7 = 7}"),
)
CHOICE = (
    *(
        "<answer>B</answer>",
        "<answer>",
        "<answer>B",
        "ANSWER IS B",
        "\\boxed{\\text{Option B}}",
        "A or C",
        "(B",
        "B)",
        "**B",
    ),
    *(
        "B" * 200,
        "answer: " * 100,
        "ABCDE",
        "not B",
        "<answer>Ｂ</answer>",
        "<answer>" * 60,
        "<answer>β</answer>",
        "Option ",
    ),
)
TOOLS = (
    *("<tool_call>", "</tool_call>", '<tool_call>{"name": "f", "arguments": {"a": 1}}', '{"name": "f"', "[TOOL_CALLS]"),
    *("[TOOL_CALLS]f[ARGS]{", '[TOOL_CALLS][{"name": "f", "arguments": {}}', "<function_calls>f(a=", "<function=f>"),
    *(
        "<function=f><parameter=a>",
        "<tool_call>f<arg_key>a</arg_key>",
        "<|python_start|>",
        "<|python_end|>{",
        "<|python_tag|>",
    ),
    *(
        "<｜tool▁call▁begin｜>f<｜tool▁sep｜>{",
        "to=functions.f<|message|>{",
        "<|tool_call>call:f{a:",
        "<TOOLCALL>[",
        "Action:",
    ),
    *(
        "Action: f",
        "Action: f\nAction Input: {",
        'Action: f\nAction Input: {"a": 1}',
        "Action Input:" * 40,
        "Action: f()\n" * 20,
    ),
    *(
        '{"a":' * 200,
        "[" * 400,
        '{"name": "f", "arguments": ' * 40,
        "<function_calls>" + "f(" * 90,
        "<function_calls>f(a=" + "-" * 300,
    ),
    *("<function_calls>f(a=9**9**9)</function_calls>", "<function_calls>f(**{})</function_calls>", '{"a": 1, "a": 2}'),
    *('{"name": {"name": "f"}, "arguments": []}', '{"name": "f", "arguments": "{"}', '{"name": "f", "arguments": NaN}'),
    '<tool_call>{"name": "f", "arguments": {"a": ' + "9" * 5000 + "}}</tool_call>",
    '<tool_call>{"name": "\\ud800", "arguments": {"\\udfff": "\\ud800"}}</tool_call>',
)
COUNTDOWN = (
    *(
        "answer:",
        "= 7",
        "((((",
        "1 ÷ 0",
        "3 + ",
        "× × ×",
        "3 3 3",
        "(" * 300,
        "answer: 1 + 1 = 2",
        "1" * 300,
        "- - 3",
        "3 − 2",
    ),
    *("<answer>3 + 4</answer>", "\\boxed{3 + 4}", "1/3", "2^9", "1e5", "answer: " + "1 + " * 300),
)
BODIES = (
    *(
        "return x + 1",
        "return object()",
        "return None",
        "return Lies()",
        "return type('A', (int,), {})(x + 1)",
        "return -0.0",
    ),
    *(
        "return Decimal('sNaN')",
        "return 10 ** 5000",
        "return Fraction(10 ** 3000, 7)",
        "return float('nan')",
        "return '\\ud800'",
    ),
    *(
        "return [Lies(), {Lies(): Lies()}]",
        "return {1, 1.0, True, Decimal(1)}",
        "return iter(int, 1)",
        "return x.__class__",
    ),
    *(
        "y = []\n    for _ in range(100000): y = [y]\n    return y",
        "y = []\n    y.append(y)\n    return y",
        "return 'a' * 10 ** 7",
    ),
    *(
        "print('x' * 3_000_000)",
        "print('\\ud800')",
        "import os; os.write(1, b'\\xff\\xfe' * 999)",
        "import sys; sys.exit(0)",
    ),
    *(
        "raise SystemExit('\\udcff')",
        "import os; os._exit(0)",
        "import os; os.kill(os.getpid(), 9)",
        "raise ValueError('\\ud800\\x1b[2J')",
    ),
    *(
        "raise Loud()",
        "return f(x)",
        "raise KeyboardInterrupt",
        "raise BaseException(b'\\xff')",
        "raise Exception('y' * 10 ** 6)",
    ),
    *(
        "import sys; sys.stdout.close(); return x + 1",
        "import os; os.close(1); os.close(2)",
        "raise StopIteration",
        "yield x + 1",
    ),
    *(
        "raise ExceptionGroup('\\u202e', [ValueError('\\x07')])",
        "return memoryview(b'abc')",
        "return lambda: x",
        "return ...",
    ),
    *(
        "import gc; gc.disable(); del __builtins__",
        "return x.real + 1j",
        "return range(10 ** 18)",
        "return {frozenset(): x}",
    ),
    *(
        "assert False, '\\ud800'",
        "raise Exception from Loud()",
        "import threading; threading.Thread(target=f, args=(x,)).start()",
    ),
    *(
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0)); return x + 1",
        "import ctypes; ctypes.string_at(0)",
    ),
)
CLASSES = """
from decimal import Decimal
from fractions import Fraction
class Lies:
    def __eq__(self, other): return True
    def __hash__(self): raise SystemExit
    def __repr__(self): return '\\ud800\\x1b' * 9
    def __len__(self): return -1
class Loud(Exception):
    def __str__(self): raise Loud
    __repr__ = __str__
"""
CODE = (
    *(
        "```python\n",
        "```",
        "```py",
        "~~~",
        ">>> f(1)\n2",
        "def f(x):\n",
        "def f(x): return x + 1",
        "# -*- coding: utf-7 -*-\n",
    ),
    *(
        "def f(x, /, *, y): pass",
        "f = None",
        "class f: pass",
        "from __future__ import braces",
        "    def f(x):\n\treturn 1",
        "'" * 3,
    ),
    *(
        "def f(x):\n" + " if x:\n" * 3 + "    return 1",
        "(" * 300,
        "f = " + "-" * 2000 + "1",
        "lambda: " * 200,
        "import f",
    ),
)
PIECES: Mapping[str, Sequence[str]] = {
    "math": MATH,
    "choice": CHOICE,
    "tools": TOOLS,
    "code": CODE,
    "countdown": COUNTDOWN,
}


def program(dice: random.Random) -> str:
    """A program whose function ends, returns or prints in an unusual way, mostly inside a fence."""
    body = dice.choice(BODIES)
    text = f"{CLASSES}\ndef f(x):\n    {body}\n"
    if dice.random() < 0.2:
        text = (
            f"{CLASSES}\n" + body.replace("return", "x =").replace("yield", "x =").replace("\n    ", "\n") + "\n" + text
        )
    opening, closing = dice.choice([("```python\n", "```"), ("```\n", "```"), ("```python\n", ""), ("", "")])
    return f"{opening}{text}{closing}"


def mangled(text: str, dice: random.Random) -> str:
    """The text, cut, repeated, or with a character changed."""
    place = dice.randrange(len(text) + 1)
    match dice.randrange(6):
        case 0:
            return text[:place]
        case 1:
            return text[place:]
        case 2:
            return text * dice.randrange(2, 5)
        case 3:
            return text[:place] + dice.choice(STRANGE) + text[place:]
        case 4:
            return (
                text[:place]
                + chr(dice.choice([dice.randrange(32), dice.randrange(0xD800), dice.randrange(0xE000, 0x110000)]))
                + text[place + 1 :]
            )
        case _:
            return text


def hostile_text(kind: str, right: str | None, dice: random.Random) -> str:
    """A text for a task of this kind. ``right`` is a correct solution, which some of the texts hold."""
    marks = [mark for one in THINKING for mark in (one.begin, *one.ends)]
    sources: list[Callable[[], str]] = [
        *[lambda: dice.choice(PIECES[kind])] * 4,
        *[lambda: dice.choice(STRANGE)] * 2,
        lambda: dice.choice(NUMBERS),
        lambda: dice.choice(marks),
        lambda: dice.choice(CONTROL),
        lambda: dice.choice(PIECES[dice.choice(list(PIECES))]),
        lambda: "".join(chr(dice.randrange(0x20, 0x7F)) for _ in range(dice.randrange(60))),
        lambda: " \n"[dice.randrange(2)],
        lambda: f"\\boxed{{{dice.choice(NUMBERS)}}}",
    ]
    if kind == "code":
        sources += [lambda: program(dice)] * 8
    if right is not None:
        sources += [lambda: right] * 4
    parts = [dice.choice(sources)() for _ in range(1 if dice.random() < 0.25 else dice.randrange(2, 9))]
    return "".join(mangled(part, dice) if part and dice.random() < 0.3 else part for part in parts)


class HostileSampler:
    """Stands in for a sampler: every completion is hostile text, random tokens, or special tokens alone."""

    def __init__(self, chat: Chat, kind: str, seed: int) -> None:
        self.chat, self.kind, self.seed = chat, kind, seed
        self.right: dict[tuple[int, ...], str] = {}
        """A correct solution of each prompt."""

    def sample(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[list[Completion]]:
        """Completions that depend on the fuzzer's seed and on those of the params alone."""
        rows = params.seeds(len(prompts))
        return [
            [self._completion(tuple(prompt), random.Random(self.seed ^ seed), params.max_tokens) for seed in seeds]
            for prompt, seeds in zip(prompts, rows, strict=True)
        ]

    def _completion(self, prompt: tuple[int, ...], dice: random.Random, most: int) -> Completion:
        size = max(self.chat.tokenizer.get_vocab().values()) + 1
        special = self.chat.tokenizer.all_special_ids
        match dice.randrange(12):
            case 0:
                ids = [dice.randrange(size) for _ in range(dice.randrange(most))]
            case 1:
                ids = [dice.choice(special) for _ in range(dice.randrange(20))]
            case _:
                text = hostile_text(self.kind, self.right.get(prompt), dice)
                ids = self.chat.tokenizer(text, add_special_tokens=False)["input_ids"]
        # A stop id ends what an engine samples.
        stop = next((index for index, token in enumerate(ids) if token in self.chat.stop_ids), None)
        ids = [*ids, *self.chat.turn_end] if stop is None else ids[: stop + 1]
        finished = len(ids) <= most
        ids = ids[:most]
        return Completion(tuple(ids), tuple(-10 * dice.random() for _ in ids), finished)
