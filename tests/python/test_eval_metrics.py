"""Scores of answers: published vectors, the packages they follow, and what has to hold always."""

from __future__ import annotations

import random

import pytest
from conftest import optional_module
from hypothesis import given
from hypothesis import strategies as st

from kvengine.eval import metrics

# Few words and much punctuation, so that sentences and words often agree.
TEXTS = st.lists(st.sampled_from(["the", "cat", "Cat", "sat", "on", ".", ". ", " ", "mat."])).map(
    " ".join
)
TOKENS = st.lists(st.integers(0, 3), max_size=40)


def test_token_f1() -> None:
    assert metrics.token_f1("The Cat, sat.", "a cat sat") == 1
    # 2 words in common; 4 found ("sat" once), 3 wanted: 2 * (1/2 * 2/3) / (1/2 + 2/3)
    assert metrics.token_f1("sat cat sat up", "cat sat mat") == pytest.approx(4 / 7)
    assert metrics.token_f1("", "cat") == metrics.token_f1("cat", "") == 0
    assert metrics.token_f1("the", "a") == 0  # nothing is left of either


@given(TEXTS, TEXTS)
def test_f1_is_symmetric_and_bounded(a: str, b: str) -> None:
    assert metrics.token_f1(a, b) == pytest.approx(metrics.token_f1(b, a))
    assert 0 <= metrics.token_f1(a, b) <= 1
    assert metrics.token_f1(a, a) == (1 if metrics.normalize(a) else 0)


@pytest.mark.parametrize(
    ("prediction", "reference", "p", "r", "f"),
    [
        ("the cat sat on the mat", "the cat is on the mat", 4 / 5, 4 / 5, 0.799999995),
        ("a b c d. e f", "a c. e f g", 2 / 3, 0.8, 0.727272722),
        ("the the the cat", "the cat", 1, 1, 0.999999995),
        ("", "the cat", 0, 0, 0),
        ("...", "the cat", 0, 0, 0),
    ],
)
def test_rouge_l(prediction: str, reference: str, p: float, r: float, f: float) -> None:
    found = metrics.rouge_l(prediction, reference)
    assert (found.p, found.r) == pytest.approx((p, r))
    assert found.f == pytest.approx(f, abs=5e-10)


def test_rouge_l_is_that_of_the_package() -> None:
    package = optional_module("rouge").Rouge(["rouge-l"])
    draw = random.Random(1)
    words = ["the", "cat", "sat", "on", "a", "mat", "The", "dog,", "\n", "it"]
    for _ in range(300):
        texts = []
        for _ in range(2):
            parts = [" ".join(draw.choices(words, k=draw.randint(0, 14))) for _ in range(4)]
            texts.append(draw.choice([".", ". ", " . ", "..", ""]).join(parts))
        if not all(text.replace(".", "") for text in texts):
            continue  # the package raises
        expected = package.get_scores(*texts)[0]["rouge-l"]
        found = metrics.rouge_l(*texts)
        assert (found.p, found.r, found.f) == (expected["p"], expected["r"], expected["f"]), texts


def test_rouge_l_is_that_of_rouge_score_where_definitions_agree() -> None:
    """On one sentence each, of distinct lower-case words: no stems, no sets, no summary level."""
    scorer = optional_module("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    draw = random.Random(2)
    words = [f"{a}{b}" for a in "abcdefgh" for b in "xyz"]
    for _ in range(200):
        texts = [" ".join(draw.sample(words, draw.randint(1, 12))) for _ in range(2)]
        expected = scorer.score(target=texts[1], prediction=texts[0])["rougeL"]
        found = metrics.rouge_l(*texts)
        assert (found.p, found.r) == pytest.approx((expected.precision, expected.recall))
        assert found.f == pytest.approx(expected.fmeasure, abs=1e-8)  # rouge adds 1e-8 below


def test_long_sentences_do_not_exhaust_the_stack() -> None:
    text = " ".join(f"w{i}" for i in range(1200))
    assert metrics.rouge_l(text, text).f == pytest.approx(1)


@given(TEXTS, TEXTS)
def test_rouge_l_is_bounded(a: str, b: str) -> None:
    found = metrics.rouge_l(a, b)
    assert all(0 <= value <= 1 for value in (found.p, found.r, found.f))


def test_edit_similarity() -> None:
    assert metrics.edit_similarity("    return x + 1", "    return x+1;") == 0.90
    assert metrics.edit_similarity("abc", "abd") == 0.67
    assert metrics.edit_similarity("", "") == 1
    assert metrics.edit_similarity("", "abc") == 0


def test_edit_similarity_is_that_of_fuzzywuzzy() -> None:
    fuzz = optional_module("fuzzywuzzy.fuzz")
    if fuzz.SequenceMatcher.__module__ != "difflib":
        pytest.skip("fuzzywuzzy uses python-Levenshtein, whose ratio is another one")
    draw = random.Random(3)
    for _ in range(300):
        texts = ["".join(draw.choices("ab(=) \n1é", k=draw.randint(1, 300))) for _ in range(2)]
        texts[1] = draw.choice([texts[1], texts[0][: len(texts[0]) // 2] + texts[1]])
        assert metrics.edit_similarity(*texts) == fuzz.ratio(*texts) / 100, texts


@given(st.text(), st.text())
def test_edit_similarity_is_whole_percents(a: str, b: str) -> None:
    score = metrics.edit_similarity(a, b)
    assert 0 <= score <= 1
    assert metrics.edit_similarity(a, a) == 1
    assert 100 * score == pytest.approx(round(100 * score))


def test_first_code_line() -> None:
    assert metrics.first_code_line("\n\n```python\n# why\nx = 1\ny = 2") == "x = 1"
    assert metrics.first_code_line("// no\n`no`") == ""
    assert metrics.first_code_line("  x\n") == "  x"


def test_passkeys() -> None:
    assert metrics.partial_match("12345 67", "1234567") == pytest.approx(5 / 7)
    assert metrics.exact_match("The key is 1234567.", "1234567") == 1
    assert metrics.exact_match("12345 67", "1234567") == 0
    assert metrics.partial_match("", "1234567") == metrics.partial_match("abc", "") == 0


@given(st.text("ab1", max_size=12), st.text("ab1", max_size=12))
def test_longest_common_substring(a: str, b: str) -> None:
    substrings = {a[i:j] for i in range(len(a)) for j in range(i, len(a) + 1)} | {""}
    assert metrics.longest_common_substring(a, b) == max(len(s) for s in substrings if s in b)


def test_retrieval_and_count() -> None:
    assert metrics.retrieval("Paragraph 3, not 13 or 3", "Paragraph 3") == pytest.approx(2 / 3)
    assert metrics.retrieval("none", "Paragraph 3") == 0
    assert metrics.count("I count 7 of 8", "7") == 0.5
    assert metrics.count("seven", "7") == 0


def test_classification() -> None:
    classes = ["Person", "Group of people", "people", "Place"]
    assert metrics.classification("Person", "Person", classes) == 1
    assert metrics.classification("Person or Place", "Person", classes) == 0.5
    assert metrics.classification("Group of people", "Group of people", classes) == 1
    assert metrics.classification("Place", "Person", classes) == 0


def test_mentioned() -> None:
    assert metrics.mentioned("Apple, pear.", ["apple", "PEAR", "plum", "fig"]) == 0.5
    assert metrics.mentioned("anything", []) == 0


def test_distinct_n() -> None:
    assert metrics.distinct_n([1, 2, 1, 2, 1], 1) == pytest.approx(2 / 5)
    assert metrics.distinct_n([1, 2, 1, 2, 1], 2) == pytest.approx(2 / 4)
    assert metrics.distinct_n([1], 2) == 0
    with pytest.raises(ValueError, match="at least 1"):
        metrics.distinct_n([1], 0)


def test_longest_loop() -> None:
    assert metrics.longest_loop([1, 2, 3, 4, 5]) is None
    assert metrics.longest_loop([9, 1, 2, 1, 2, 1, 2, 1, 8]) == metrics.Loop(1, 2, 7)
    assert metrics.longest_loop([7] * 10) == metrics.Loop(0, 1, 10)
    assert metrics.longest_loop([]) is None


@given(TOKENS, st.integers(2, 4))
def test_longest_loop_by_trying_all(tokens: list[int], copies: int) -> None:
    longest = 0
    for start in range(len(tokens)):
        for period in range(1, len(tokens)):
            length = period
            while start + length < len(tokens) and (
                tokens[start + length] == tokens[start + length - period]
            ):
                length += 1
            if length >= copies * period:
                longest = max(longest, length)
    found = metrics.longest_loop(tokens, copies)
    assert (found.length if found else 0) == longest
    if found:
        part = tokens[found.start : found.start + found.length]
        assert part[found.period :] == part[: -found.period]
