"""The toolbox's API: its functions, the conventions of its calls, a strict parser, and feedback on wrong calls.

A convention is one value of a dimension (the unit of lengths, the order of plain arguments …). The right call follows
from the values of a request and one convention for each dimension of the function.
"""

from __future__ import annotations

import random
import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

Conventions = Mapping[str, str]
"""One value for every dimension: ``{"length": "feet", "order": "item before number", …}``."""

DIMENSIONS: dict[str, tuple[str, ...]] = {
    "length": ("metres", "feet", "yards", "paces"),
    "temperature": ("celsius", "kelvin"),
    "time": ("seconds", "minutes", "hours"),
    "place_word": ("to", "dest"),
    "person_word": ("user", "client"),
    "order": ("item before number", "number before item"),
    "date": ("day before month", "month before day"),
    "verb": ("delete", "erase"),
    "confirm": ("yes", "no"),
}
"""Each dimension → its possible conventions. Requests do not mention conventions."""

SLOTS = ("item", "number", "day", "month", "place", "person")
"""Names of the values in a request, in the order of the thinking."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function of the API. ``call`` is the template of a call, with slots and dimensions by name."""

    call: str
    requests: tuple[str, ...]
    items: tuple[str, ...]

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The dimensions on which a call depends, in the order of the call."""
        return tuple(name for name in self._names() if name in DIMENSIONS)

    @property
    def slots(self) -> tuple[str, ...]:
        """The slots that a request fills."""
        joint = {"order": ("item", "number"), "date": ("day", "month")}
        used = {slot for name in self._names() for slot in joint.get(name, (name,))}
        return tuple(slot for slot in SLOTS if slot in used)

    def _names(self) -> list[str]:
        return string.Template(self.call).get_identifiers()

    def expected(self, values: Mapping[str, str], conventions: Conventions) -> str:
        """The right call for the values of a request.

        Example: ``move ( crate , distance = 37 , unit = feet , to = harbour )``.
        """
        substitutions = {
            **values,
            **conventions,
            "confirm": " , confirm = yes" if conventions["confirm"] == "yes" else "",
        }
        for name, between in (("order", " , "), ("date", " ")):
            substitutions[name] = between.join(values.get(slot, "") for slot in conventions[name].split(" before "))
        return string.Template(self.call).substitute(substitutions)


_GOODS = tuple("crate barrel parcel ladder piano chair table carpet bicycle basket statue trunk".split())
_PAPERS = tuple("letter report map invoice poster ticket recipe novel diary photo menu contract".split())
_STOCK = tuple("apples bricks candles bottles plates pencils onions nails towels cups seeds coats".split())

TOOLS: dict[str, Tool] = {
    "transport": Tool(
        "move ( $item , distance = $number , unit = $length , $place_word = $place )",
        (
            "move the $item $number towards the $place",
            "carry the $item over $number and on towards the $place",
            "the $item belongs near the $place , which is $number away",
        ),
        _GOODS,
    ),
    "heating": Tool(
        "heat ( $item , degrees = $number , unit = $temperature )",
        ("heat the $item up by $number", "make the $item $number warmer", "the $item is too cold by $number"),
        tuple("oven kiln pool boiler kettle sauna stove radiator tank furnace bath greenhouse".split()),
    ),
    "timing": Tool(
        "run ( $item , time = $number , unit = $time )",
        ("run the $item for $number", "let the $item work for $number", "start the $item and stop it after $number"),
        tuple("pump fan mixer washer siren lamp drill engine clock radio robot mill".split()),
    ),
    "deletion": Tool(
        "$verb ( $item , owner = $person$confirm )",
        (
            "throw away the $item of $person",
            "$person does not need the $item any more",
            "get rid of the $item that $person left",
        ),
        _PAPERS,
    ),
    "booking": Tool(
        "book ( $item , date = $date , $person_word = $person )",
        (
            "book the $item on $day $month for $person",
            "$person needs the $item on $day $month",
            "reserve the $item in $month on the $day for $person",
        ),
        tuple("garden hall studio cabin boat stage library gallery kitchen theatre court attic".split()),
    ),
    "printing": Tool(
        "print ( $order , paper = plain )",
        ("print the $item $number times", "print $number copies of the $item", "the $item is needed $number times"),
        _PAPERS,
    ),
    "payment": Tool(
        "pay ( amount = $number , $person_word = $person$confirm )",
        ("pay $person $number coins", "$person gets $number coins", "send $person $number coins"),
        (),
    ),
    "storage": Tool(
        "store ( $order , $place_word = $place )",
        ("put $number $item into the $place", "the $place gets $number $item", "keep the $number $item in the $place"),
        _STOCK,
    ),
}
"""Topic in the thinking → the function."""

PLACES = tuple("harbour market station bridge tower cellar barn museum school shed mill church".split())
PERSONS = tuple(
    "alice bruno clara david emma felix grace henry irene jonas karin louis "
    "maria nadia oscar paula quentin rosa simon tessa ulrich vera walter yara".split()
)
MONTHS = tuple("january february march april may june july august september october november december".split())
LARGEST = 99


def conventions_of(seed: int) -> dict[str, str]:
    """The conventions sampled from a seed."""
    rng = random.Random(f"toolbox conventions {seed}")
    return {name: rng.choice(values) for name, values in DIMENSIONS.items()}


class MalformedCall(ValueError):
    """The text is not a call. The message says why, in the task's vocabulary."""


@dataclass(frozen=True, slots=True)
class Call:
    """A parsed call: the function, its plain arguments in order, its named arguments in order."""

    function: str
    plain: tuple[str, ...]
    named: tuple[tuple[str, str], ...]

    @property
    def normal_form(self) -> str:
        """Canonical text, the same for calls that differ only in the order of named arguments."""
        arguments = [*self.plain, *(f"{key} = {value}" for key, value in sorted(self.named))]
        return f"{self.function} ( {' , '.join(arguments)} )"


_WORD = re.compile(r"[a-z0-9_]+|\S")


def parse(text: str) -> Call:
    """Read ``function ( argument , key = argument , … )``.

    Raises:
        MalformedCall: the text is not such a call.
    """
    words = _WORD.findall(text.lower())
    if not words or not _is_word(words[0]):
        raise MalformedCall("a function was expected first")
    if len(words) < 2 or words[1] != "(":
        raise MalformedCall("a bracket was expected after the function")
    if ")" not in words:
        raise MalformedCall("a bracket was opened but not closed")
    if words[-1] != ")" or words.count(")") > 1:
        raise MalformedCall("there is something after the closing bracket")
    plain: list[str] = []
    named: list[tuple[str, str]] = []
    for part in _arguments(words[2:-1]):
        key, equals, value = _split(part)
        if not value or (equals and len(key) != 1) or not all(map(_is_word, [*key, *value])):
            raise MalformedCall("an argument is not well formed")
        if equals:
            named.append((key[0], " ".join(value)))
        elif named:
            raise MalformedCall("a plain argument follows a named argument")
        else:
            plain.append(" ".join(value))
    return Call(words[0], tuple(plain), tuple(named))


def _is_word(word: str) -> bool:
    return word.replace("_", "a").isalnum()


def _arguments(words: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for word in words:
        if word == ",":
            yield part
            part = []
        else:
            part.append(word)
    if part or words:
        yield part


def _split(part: list[str]) -> tuple[list[str], bool, list[str]]:
    if "=" not in part:
        return [], False, part
    at = part.index("=")
    return part[:at], True, part[at + 1 :]


def complain(call: Call, topic: str, values: Mapping[str, str], conventions: Conventions) -> str | None:
    """Feedback that lists every fault of a call, in the task's vocabulary. None if the call is right."""
    expected = parse(TOOLS[topic].expected(values, conventions))
    faults: list[str] = []
    if call.function != expected.function:
        faults.append(f"the function must be {expected.function}")
    faults += _plain_faults(call, expected, values, conventions)
    faults += _named_faults(call, expected, values, conventions)
    return " and ".join(faults) or None


def _plain_faults(call: Call, expected: Call, values: Mapping[str, str], conventions: Conventions) -> Iterator[str]:
    slot_of = {value: slot for slot, value in values.items()}
    missing = Counter(expected.plain) - Counter(call.plain)
    for value in expected.plain:
        if missing[value]:
            yield f"the {slot_of[value]} must be {value}"
    if len(call.plain) > len(expected.plain):
        yield "too many plain arguments"
    if not missing and len(call.plain) == len(expected.plain) and call.plain != expected.plain:
        yield f"argument order must be {conventions['order']}"


def _named_faults(call: Call, expected: Call, values: Mapping[str, str], conventions: Conventions) -> Iterator[str]:
    given, expected_arguments = dict(call.named), dict(expected.named)
    for key, count in Counter(key for key, _ in call.named).items():
        if key not in expected_arguments:
            yield f"unknown argument {key}" if key in _KEYS else "unknown argument"
        elif count > 1:
            yield f"argument {key} is given twice"
    for key, value in expected_arguments.items():
        if given.get(key) == value:
            continue
        if key == "confirm":
            yield f"the call needs confirm = {value}"
        elif key in given or key == "unit":
            words = sorted(value.split())
            swapped = key == "date" and sorted(given[key].split()) == words
            yield f"date must be {conventions['date']}" if swapped else f"the {key} must be {value}"
        else:
            yield f"the call needs an argument {key}"


_KEYS = frozenset(
    {
        *re.findall(r"(?<!\$)\b(\w+) =", " ".join(tool.call for tool in TOOLS.values())),
        *("confirm", *DIMENSIONS["place_word"], *DIMENSIONS["person_word"]),
    }
)
"""All argument names, under any conventions."""
