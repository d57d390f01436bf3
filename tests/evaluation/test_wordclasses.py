"""Classes of tokens by word lists: who claims what, and lists of one's own."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from selfdistill.errors import ConfigError
from selfdistill.evaluation.words import (
    ALL_CLASSES,
    CLASSES,
    classify,
    count_markers,
    deliberation_pattern,
    load_classes,
    mentions_unseen,
)
from selfdistill.training.metrics import rollout_metrics
from selfdistill.types import Example, Message, Rollout, RolloutGroup, Verdict

SENTENCE = "wait , so try 12 + 3.5 = 15.5 self-made double-check </think> the final answer is 12 + 3"


def classes_of(text: str, folder: Path | None = None) -> dict[str, str]:
    """The class of every word, the last one of equal words."""
    spans, at = [], 0
    for word in text.split(" "):
        spans.append((at, at + len(word)))
        at += len(word) + 1
    found = classify(text, spans, load_classes(folder))
    return dict(zip(text.split(" "), found, strict=True))


def test_each_marker_is_counted_by_itself() -> None:
    texts = ["Wait, wait. Maybe not; let me check again.", "so perhaps, waiting or not,\nmaybe."]
    counted = count_markers(texts)
    assert {word: number for word, number in counted.items() if number} == {
        "wait": 2, "maybe": 2, "let me": 1, "check again": 1, "perhaps": 1,
    }  # fmt: skip
    assert counted["hmm"] == 0 and list(counted)[:2] == ["wait", "hmm"]
    assert sum(counted.values()) == sum(len(deliberation_pattern().findall(text)) for text in texts)
    assert set(count_markers([]).values()) == {0}


def test_every_word_goes_to_its_list() -> None:
    found = classes_of(SENTENCE)
    assert found["wait"] == found["double-check"] == "deliberation"
    assert found["so"] == "connective"
    assert found["3.5"] == found["15.5"] == "number"
    assert found["="] == "operator"
    assert found["try"] == found[","] == found["self-made"] == found["</think>"] == found["the"] == "other"


def test_the_answer_is_all_that_follows_its_last_announcement_after_the_thinking() -> None:
    assert classes_of(SENTENCE)["12"] == classes_of(SENTENCE)["+"] == classes_of(SENTENCE)["is"] == "answer"
    assert classes_of("the answer may be 4 </think> 5")["5"] == "number"
    assert classes_of(r"so \boxed{5} .")[r"\boxed{5}"] == "answer"


def test_a_phrase_claims_every_token_it_touches() -> None:
    text = "let me see"
    spans = [(0, 2), (2, 3), (3, 6), (6, 10), (10, 10)]
    assert classify(text, spans, load_classes()) == ["deliberation"] * 3 + ["other", "other"]


def test_what_runs_count_as_deliberation_is_the_class_of_that_name() -> None:
    text = "Wait, waiting is no wait; let me double-check it, maybe (HMM) check again. Letme"
    found = deliberation_pattern().findall(text)
    assert found == ["Wait", "wait", "let me", "double-check", "maybe", "HMM", "check again"]
    assert deliberation_pattern() == load_classes()["deliberation"]


def test_own_lists_replace_the_shipped_ones_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "deliberation.txt").write_text("# a comment\nhang on\n/r+/\n\n", encoding="utf-8")
    found = classes_of("hang on , wait rrr 4", tmp_path)
    assert found["hang"] == found["on"] == found["rrr"] == "deliberation"
    assert found["wait"] == "other"
    assert found["4"] == "number"


def test_a_folder_without_lists_and_a_broken_expression_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no word list: name them answer\.txt"):
        load_classes(tmp_path)
    (tmp_path / "number.txt").write_text("/[/\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"number\.txt"):
        load_classes(tmp_path)


def test_other_comes_last() -> None:
    assert (*CLASSES, "other") == ALL_CLASSES


def test_a_leak_is_a_mention_of_a_reference_that_the_problem_does_not_mention() -> None:
    for text in (
        "As the Reference Solution shows, 4.",
        "the given says 5",
        "so, as hinted, 2",
        "According to the answer",
    ):
        assert mentions_unseen(text, "What is 2 + 2?")
    for text in ("The solution is 4.", "I was hinted-at", "the answer: 4", "preference answers", ""):
        assert not mentions_unseen(text, "What is 2 + 2?")
    # Whoever was shown the words may use them, and only those.
    shown = "Say whether the GIVEN ANSWER is right."
    assert not mentions_unseen("The given answer is wrong.", shown)
    assert mentions_unseen("The given answer is wrong by the answer key.", shown)


def test_the_share_of_leaks_counts_the_completions_of_a_role_and_not_the_datas_own() -> None:
    def group(question: str, *said: tuple[str, str, float]) -> RolloutGroup:
        rollouts = tuple(Rollout((1,), (2,), (logprob,), True, text, 0, source) for text, source, logprob in said)
        return RolloutGroup(Example("one", (Message("user", question),)), rollouts, (Verdict(1.0),) * len(said))

    leak, plain = "by the answer key", "four"
    groups = [
        group("2 + 2?", (leak, "student", -1.0), (plain, "student", -1.0), (leak, "teacher", -1.0)),
        group("Use the answer key.", (leak, "student", -1.0), (plain, "student", -1.0)),
        group("3?", (leak, "student", math.nan)),
    ]
    assert rollout_metrics(groups, "student")["leak"] == 0.25
    assert rollout_metrics(groups, "teacher")["leak"] == 1.0
    assert rollout_metrics(groups[2:], "student")["leak"] is None
