"""Multiple choice: which letter a completion chose, what the verifier says of it, and options that change places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfdistill.config.tasks import ChoiceConfig
from selfdistill.errors import DataError
from selfdistill.tasks.choice.letters import Chosen, chosen_letter, names_letter
from selfdistill.tasks.choice.options import option_lines
from selfdistill.tasks.choice.task import ChoiceTask
from selfdistill.training.problem import epoch_examples
from selfdistill.types import Example, Message, Verdict

INSIDE = {
    "prompt": "Which of these is a metal?\n\nA: iron\nB: neon\nC: chlorine\nD: sulphur\nPlease reason step by step.",
    "answer": "A",
    "system": "Answer as <answer>X</answer>.",
}
COLUMNS = {"Question": "2 + 2 = ?", "Correct Answer": "4", "Incorrect Answer 1": "3", "Incorrect Answer 2": "5"}
SOURCES = ["Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2"]


def save(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def all_of(path: Path, *, seed: int = 0, **arguments: Any) -> ChoiceTask:
    config = ChoiceConfig(path=str(path), validation_share=0.0, test_share=0.0, **arguments)
    return ChoiceTask(config, seed=seed)


def one_of(path: Path, row: dict[str, Any], **arguments: Any) -> tuple[ChoiceTask, Example]:
    task = all_of(save(path / "rows.jsonl", row), **arguments)
    (example,) = task.examples("train")
    return task, example


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("<reasoning>\nA or B\n</reasoning>\n<answer>\nB\n</answer>", "B"),
        ("<answer>A</answer> no, <answer>c</answer>", "C"),
        ("<answer>B: 56 pC</answer>", "B"),
        ("<answer>(D)</answer>", "D"),
        ("so \\boxed{B}", "B"),
        ("so \\boxed{\\text{B}}", "B"),
        ("so \\boxed{\\text{B: 56 pC}}", "B"),
        ("so \\boxed{\\textbf{(B)}}", "B"),
        ("<answer>A</answer> or rather \\boxed{C}", "C"),
        ("Answer: B", "B"),
        ("**Answer:** C", "C"),
        ("The answer is (D).", "D"),
        ("Answer: B, since A is too small", "B"),
        ("it must be option C", "C"),
        ("B", "B"),
        ("Between B and C, I think C.", "C"),
        ("C is right. A gas expands.", "C"),
        ("Choose A because it fits", "A"),
        ("D it is, I say", "D"),
        ("by E = mc^2 and F=ma this is B", "B"),
        ("<think>\\boxed{A}</think> B", "B"),
        ("A glance says nothing", None),
        ("the answer is a force", None),
        ("<think>surely B", None),
        ("", None),
    ],
)
def test_the_letter_is_tagged_or_the_last_that_stands_alone(text: str, letter: str | None) -> None:
    assert chosen_letter(text).letter == letter


def test_a_tag_without_a_letter_is_believed_and_a_cut_text_only_in_closed_tags() -> None:
    assert chosen_letter("B seems right. <answer>56 pC</answer>") == Chosen(None, "56 pC")
    assert chosen_letter("<answer>A, B</answer>") == Chosen(None, "A, B")
    assert chosen_letter("the answer is B", finished=False) == Chosen(None)
    assert chosen_letter("perhaps C", finished=False) == Chosen(None)
    assert chosen_letter("<answer>B</answer> becau", finished=False) == Chosen("B")
    assert chosen_letter("<answer>B", finished=False) == Chosen(None)


def test_verdicts(tmp_path: Path) -> None:
    task, example = one_of(tmp_path, INSIDE, prompt="prompt", system="$system", suffix="")
    assert example.prompt == (Message("system", INSIDE["system"]), Message("user", INSIDE["prompt"]))
    assert (example.fields["answer"], example.fields["option"]) == ("A", "iron")
    assert task.verify(example, task.reference(example), finished=True) == Verdict(1.0, "A")
    assert task.verify(example, "<answer>B</answer>", finished=True) == Verdict(0.0, "B")
    none = Verdict(0.0, None, "no letter of an option was found", {"no_answer": 1.0})
    assert task.verify(example, "iron", finished=True) == none
    cut = Verdict(0.0, None, "the completion was cut off before an answer", {"no_answer": 1.0})
    assert task.verify(example, "the answer is A", finished=False) == cut
    said = "the answer 'iron' is not the letter of an option"
    assert task.verify(example, "<answer>iron</answer>", finished=True).feedback == said
    outside = Verdict(0.0, "E", "the answer E is not among the options A, B, C, D")
    assert task.verify(example, "\\boxed{E}", finished=True) == outside
    telling, example = one_of(tmp_path, INSIDE, prompt="prompt", reveal_incorrect=True)
    assert telling.verify(example, "B", finished=True).feedback == "the answer B is wrong"


def test_options_of_columns_are_listed_and_the_answer_may_be_a_text(tmp_path: Path) -> None:
    task, example = one_of(tmp_path, COLUMNS, prompt="Question", choices=SOURCES, answer="Correct Answer")
    assert example.prompt[-1].content == "2 + 2 = ?\n\nA: 4\nB: 3\nC: 5" + ChoiceConfig.model_fields["suffix"].default
    assert task.verify(example, "<answer>A</answer>", finished=True).correct
    listed = {"question": "q", "choices": {"text": ["x", "y"]}, "answerKey": "B"}
    task, example = one_of(tmp_path, listed, choices="choices.text", answer="answerKey")
    assert example.prompt[-1].content == "q\n\nA: x\nB: y" + ChoiceConfig.model_fields["suffix"].default
    assert example.fields == {"answer": "B", "option": "y"}


def test_the_answer_follows_its_option_in_every_epoch(tmp_path: Path) -> None:
    task, example = one_of(tmp_path, INSIDE, prompt="prompt", suffix="", shuffle="epoch", seed=3)
    seen = [example.in_epoch(epoch) for epoch in range(40)]
    assert seen[0] == example
    assert {one.fields["answer"] for one in seen} == set("ABCD")
    for one in seen:
        lines = one.prompt[-1].content.split("\n")
        assert f"{one.fields['answer']}: iron" in lines
        assert sorted(line[3:] for line in lines[2:6]) == ["chlorine", "iron", "neon", "sulphur"]
        assert [line[:3] for line in lines[2:6]] == ["A: ", "B: ", "C: ", "D: "]
        assert (lines[:2], lines[6:]) == (["Which of these is a metal?", ""], ["Please reason step by step."])
        assert task.verify(one, task.reference(one), finished=True).correct
        assert one.columns["shown_letter"] == one.fields["answer"]
    _, same = one_of(tmp_path, INSIDE, prompt="prompt", suffix="", shuffle="epoch", seed=3)
    assert [same.in_epoch(epoch) for epoch in range(40)] == seen, "a resumed run sees the same orders"
    _, example = one_of(tmp_path, INSIDE, prompt="prompt", suffix="", shuffle="once", seed=3)
    assert example == seen[0] and example.in_epoch(7) == example


def test_a_step_that_spans_two_epochs_asks_each_example_as_in_its_own(tmp_path: Path) -> None:
    rows = [{**INSIDE, "prompt": f"{n}. {INSIDE['prompt']}"} for n in range(3)]
    task = all_of(save(tmp_path / "rows.jsonl", *rows), prompt="prompt", shuffle="epoch")
    examples = task.examples("train")
    # Steps of two out of three examples: the second step begins with the last of epoch 0.
    assert epoch_examples(examples, [2, 0], first=2) == [examples[2], examples[0].in_epoch(1)]


@pytest.mark.parametrize("option", ["all of the above", "Both A and B", "none of these", "A and C"])
def test_options_that_refer_to_others_keep_their_places(tmp_path: Path, option: str) -> None:
    row = {**INSIDE, "prompt": INSIDE["prompt"].replace("sulphur", option)}
    _, example = one_of(tmp_path, row, prompt="prompt", suffix="", shuffle="epoch")
    assert [example.in_epoch(epoch).prompt[-1].content for epoch in range(10)] == [row["prompt"]] * 10


def test_a_shuffled_example_shows_no_solution_that_names_a_letter(tmp_path: Path) -> None:
    def shown(text: str) -> list[bool]:
        row = {**INSIDE, "why": text}
        _, example = one_of(tmp_path, row, prompt="prompt", solution="why", shuffle="epoch")
        orders = [example.in_epoch(epoch) for epoch in range(20)]
        moved = [
            one for one in orders if f"\n{INSIDE['prompt'].splitlines()[2]}\nB: neon\nC" not in one.prompt[-1].content
        ]
        assert len(moved) > 10
        return ["solution" in one.fields for one in moved]

    assert all(shown("A metal conducts, so does iron."))
    assert not any(shown("Option A conducts."))
    assert names_letter("<answer>B</answer>") and not names_letter("I take F = ma")


def test_two_options_of_one_text_are_both_right(tmp_path: Path) -> None:
    row = {"question": "q\nA: 1\nB: 2\nC: 1", "answer": "C"}
    task, example = one_of(tmp_path, row)
    rewards = [task.verify(example, f"<answer>{letter}</answer>", finished=True).reward for letter in "ABC"]
    assert rewards == [1.0, 0.0, 1.0]


def test_the_last_block_of_options_counts() -> None:
    found = option_lines("A: a table\n\nWhich?\n(A) one\n(B) two: 2\n\nGo.")
    assert found is not None and (found.first, found.texts) == (3, ("one", "two: 2"))
    assert found.movable
    assert option_lines("A: alone\nno B") is None


def test_options_of_several_lines_are_read_and_keep_their_places(tmp_path: Path) -> None:
    text = "Which?\n\nA: one\nand more\nB: two\nGo."
    found = option_lines(text)
    assert found is not None and (found.texts, found.movable) == (("one\nand more", "two"), False)
    _, example = one_of(tmp_path, {"question": text, "answer": "B"}, shuffle="epoch", suffix="")
    assert {example.in_epoch(epoch).prompt[-1].content for epoch in range(10)} == {text}


@pytest.mark.parametrize(
    ("row", "arguments", "sentence"),
    [
        (
            {"question": "q", "answer": "A"},
            {},
            "the prompt has no lines 'A: …', 'B: …'; name the columns of the options",
        ),
        (
            {"question": "q\nA: 1\nB: 2", "answer": "E"},
            {},
            "the answer 'E' is neither a letter nor a text of its options",
        ),
        (
            {"question": "q", "answer": "A", "c": "x"},
            {"choices": "c"},
            "'c' is no list of texts, but the options need one",
        ),
        (
            {"question": "q", "answer": "A", "c": ["x"]},
            {"choices": "c"},
            "a question needs 2 to 26 options, this has 1",
        ),
        ({"question": " ", "answer": "A"}, {}, "the prompt is empty"),
        ({"question": "q\nA: 1\nB: 2"}, {}, "no 'answer', which field 'answer' needs; the row has question"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict[str, Any], arguments: dict[str, Any], sentence: str) -> None:
    path = save(tmp_path / "rows.jsonl", row)
    with pytest.raises(DataError) as raised:
        ChoiceTask(ChoiceConfig(path=str(path), **arguments))
    assert str(raised.value) == f"{path}, line 1: {sentence}"


CASES = Path(__file__).parents[1] / "cases" / "choice.json"


def test_the_cases_are_read_as_a_careful_reader_reads_them() -> None:
    cases = json.loads(CASES.read_text(encoding="utf-8"))["cases"]
    wrong = [(text, letter, chosen_letter(text)) for text, letter in cases if chosen_letter(text).letter != letter]
    assert len(cases) > 200 and not wrong


@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        ("(A) or (B)", None),
        ("A) and B)", None),
        ("(A) / (C)", None),
        ("A) and B) are wrong. So it is C", "C"),
        ("(A) or (B)\n\nAnswer: B", "B"),
        ("A) Paris or Rome", "A"),
        ("The answer is ‘C’.", "C"),
        ("‘C’", "C"),
    ],
)
def test_a_line_with_two_letters_chooses_none_and_quotes_change_nothing(completion: str, letter: str | None) -> None:
    assert chosen_letter(completion, letters="ABCD").letter == letter


# Each kind was wrong once, in a reader of ours or in a public one.
@pytest.mark.parametrize(
    ("completion", "letter"),
    [
        # A small letter that is the whole reply.
        ("b", "B"),
        ("(c)", "C"),
        ("a gas", None),
        # Letters of other shapes.
        ("答案：Ｂ", "B"),
        ("\\boxed{Ｃ}", "C"),
        ("Answer: 𝐂", "C"),
        ("Ａ, Ｃ", None),
        # A mark that holds the letter and its text.
        ("<answer>B\n\nbecause it conducts</answer>", "B"),
        ("<answer>A\nB</answer>", None),
        ("\\boxed{B – iron}", "B"),
        ("\\boxed{B - 5}", None),
        ("\\boxed{B - sin x}", None),
        ("\\boxed{\\color{red}{B}}", "B"),
        ("\\boxed{\\textcolor{red}{\\text{(B)}}}", "B"),
        ("\\boxed{\\Large B}", "B"),
        # Denials with words between.
        ("I don't think it's B.", None),
        ("The answer cannot be B.", None),
        ("We should not go with option C.", None),
        ("Choose B. Do not choose A.", "B"),
        ("I'm not sure, but I think it's B.", "B"),
        ("A would be a mistake, so B.", "B"),
        ("B would be a mistake.", None),
        # What others say.
        ("Many would answer B. The truth is D.", "D"),
        # Revisions.
        ("Answer: A. On second thought, B.", "B"),
        ("B. No, C.", "C"),
        ("The answer is B. Scratch that: C.", "C"),
        ("The answer is C. Actually A is too small.", "C"),
        ("The answer is C. No, A is not better.", "C"),
        # Letters only, and lists of the options in one line.
        ("A B C D", None),
        ("A; C", None),
        ("(A)(C)", None),
        ("B and/or C", None),
        ("B, B", "B"),
        ("C. I and II", "C"),
        ("(A) iron (B) neon (C) argon (D) zinc", None),
        ("(A) iron (B) neon (C) argon (D) zinc. Correct: (D)", "D"),
        ("Option A: false. Option B: false. Option C: true.", None),
        # Questions and suppositions.
        ("Is it A?", None),
        ("Could it be B?", None),
        ("B. Would you like an explanation?", "B"),
        ("Is it B? Yes, B.", "B"),
        ("If B, then x > 0.", None),
        ("Assume the answer is B.", None),
        ("If the answer were B, x would be negative. So C.", "C"),
        # Other languages.
        ("Die Antwort ist nicht B.", None),
        ("La respuesta no es A sino D.", "D"),
        ("La réponse n'est pas C.", None),
        ("A resposta não é A.", None),
        ("A resposta é B porque A é falsa.", "B"),
        ("答案不是A，而是B。", "B"),
        ("选C，因为A太小。", "C"),
        ("选项A错误，选项B正确。", "B"),
        ("Antwoord: C, want A is te klein", "C"),
        ("정답: B. A는 너무 작습니다.", "B"),
        # Names of things, and units.
        ("The answer is hepatitis B.", None),
        ("The answer is osteoporosis. B is wrong.", None),
        ("The temperature is 25 °C.", None),
        ("C#", None),
        ("The rate is k[A][B].", None),
        ("A it is.", "A"),
    ],
)
def test_kinds_of_replies_are_read_as_a_careful_reader_reads_them(completion: str, letter: str | None) -> None:
    assert chosen_letter(completion, letters="ABCD").letter == letter


def test_only_letters_of_the_options_stand_alone() -> None:
    text = "Option B, at the temperature T"
    assert chosen_letter(text, letters="ABCD") == Chosen("B")
    assert chosen_letter(text) == Chosen("T")
    assert chosen_letter("The answer is T", letters="ABCD") == Chosen("T"), "a statement is believed and refused later"


@pytest.mark.parametrize(
    ("answer", "options", "answer_is", "letter"),
    [
        (2, ["w", "x", "y", "z"], "index0", "C"),
        (2, ["w", "x", "y", "z"], "index1", "B"),
        ("2", ["1", "2", "3", "4"], "text", "B"),
        ("2", ["1", "2", "3", "4"], "index0", "C"),
        (0, ["x", "y"], None, "A"),
        (4, ["w", "x", "y", "z"], None, "D"),
        (3.0, ["w", "x", "y", "z"], "index0", "D"),
        (7, ["6", "7"], None, "B"),
        ("A", ["B", "A"], "letter", "A"),
        ("A", ["B", "A"], "text", "B"),
        ("(b)", ["x", "y"], None, "B"),
    ],
)
def test_a_number_counts_as_the_config_says(
    tmp_path: Path, answer: object, options: list[str], answer_is: str | None, letter: str
) -> None:
    row = {"question": "q", "options": options, "answer": answer}
    _, example = one_of(tmp_path, row, choices="options", answer_is=answer_is)
    assert example.fields["answer"] == letter


@pytest.mark.parametrize(
    ("answer", "options", "answer_is", "sentence"),
    [
        (
            1,
            ["x", "y", "z"],
            None,
            'the answer \'1\' may mean different options: write task.answer_is as one of "index0" (B), "index1" (A)',
        ),
        (
            "4",
            ["3", "4", "5", "6"],
            None,
            'the answer \'4\' may mean different options: write task.answer_is as one of "index1" (D), "text" (B)',
        ),
        (
            "A",
            ["B", "A"],
            None,
            'the answer \'A\' may mean different options: write task.answer_is as one of "letter" (A), "text" (B)',
        ),
        (
            2,
            ["x", "y"],
            "index0",
            "the answer '2' is no number from 0 of its 2 options; the config says task.answer_is = \"index0\"",
        ),
        (
            "C",
            ["x", "y"],
            "letter",
            "the answer 'C' is no letter of its 2 options; the config says task.answer_is = \"letter\"",
        ),
        (7, ["x", "y"], None, "the answer '7' is neither a letter nor a text of its options"),
    ],
)
def test_an_answer_that_may_mean_two_options_is_refused(
    tmp_path: Path, answer: object, options: list[str], answer_is: str | None, sentence: str
) -> None:
    path = save(tmp_path / "rows.jsonl", {"question": "q", "options": options, "answer": answer})
    with pytest.raises(DataError) as raised:
        all_of(path, choices="options", answer_is=answer_is)
    assert str(raised.value) == f"{path}, line 1: {sentence}"
