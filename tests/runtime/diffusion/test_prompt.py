"""The prompt syntax, against results worked out by hand from its rules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelrt.errors import InputError
from pixelrt.runtime.diffusion.text.prompt import literal, parse

UP, DOWN = 1.1, 1 / 1.1
NINES = "9" * 400

CASES = {
    "": [[]],
    "normal text": [[("normal text", 1)]],
    "an (important) word": [[("an ", 1), ("important", UP), (" word", 1)]],
    "a (word:1.3) b": [[("a ", 1), ("word", 1.3), (" b", 1)]],
    "(word: 1.3 )": [[("word", 1.3)]],
    "(word:.5)(word:2)": [[("word", 0.5), ("word", 2)]],
    "(word:-1)(word:+1.5)(word:0)": [[("word", -1), ("word", 1.5), ("word", 0)]],
    "((word))": [[("word", UP * UP)]],
    "[word]": [[("word", DOWN)]],
    "[[word]]": [[("word", DOWN * DOWN)]],
    "(a (b) [c])": [[("a ", UP), ("b", UP * UP), (" ", UP), ("c", DOWN * UP)]],
    "(a (b:2):0.5) c": [[("a ", 0.5), ("b c", 1)]],
    # neighbours of one weight are one run
    "(un)(even) [a][b]": [[("uneven", UP), (" ", 1), ("ab", DOWN)]],
    "(a:1)b": [[("ab", 1)]],
    # never closed: to the end of the prompt
    "(unbalanced": [[("unbalanced", UP)]],
    "a ((b) c": [[("a ", 1), ("b", UP * UP), (" c", UP)]],
    "a [b (c": [[("a ", 1), ("b ", DOWN), ("c", UP * DOWN)]],
    # never opened: text
    "a) b] c": [[("a) b] c", 1)]],
    "a:1.3) b": [[("a:1.3) b", 1)]],
    "[a:1.3] b": [[("a:1.3", DOWN), (" b", 1)]],
    # round and square brackets do not see each other
    "([a) b]": [[("a", UP * DOWN), (" b", DOWN)]],
    "[a:2) b]": [[("a:2) b", DOWN)]],
    # a weight needs its bracket, and a number
    "(a:b)": [[("a:b", UP)]],
    "(a:1.3 b)": [[("a:1.3 b", UP)]],
    "(a:1:2)": [[("a:1", 2)]],
    # escapes
    r"\(a\) \[b\] \\": [[("(a) [b] \\", 1)]],
    r"(a\):2)": [[("a)", 2)]],
    r"(a \(b:2\):1.5)": [[("a (b:2)", 1.5)]],
    r"a\b\ c": [[("ab c", 1)]],
    "a\\": [[("a", 1)]],
    r"\\(a)": [[("\\", 1), ("a", UP)]],
    # nothing within brackets
    "()[] a": [[(" a", 1)]],
    "(:1.3)": [[]],
    "a(\\:2)b": [[("a", 1), ("b", 1)]],
    # BREAK
    "a BREAK b": [[("a ", 1)], [(" b", 1)]],
    "BREAK": [[], []],
    "a BREAK": [[("a ", 1)], []],
    "aBREAK BREAKb _BREAK break B": [[("aBREAK BREAKb _BREAK break B", 1)]],
    "a,BREAK:b": [[("a,", 1)], [(":b", 1)]],
    "(a BREAK b:2) c": [[("a ", 2)], [(" b", 2), (" c", 1)]],
    "(a)BREAK(b)": [[("a", UP)], [("b", UP)]],
    # other scripts, and lines
    "(日本\n語:1.2) é😀": [[("日本\n語", 1.2), (" é😀", 1)]],
}


@pytest.mark.parametrize(("prompt", "expected"), CASES.items(), ids=lambda case: repr(case)[:40])
def test_the_rules(prompt: str, expected: list[list[tuple[str, float]]]) -> None:
    found = parse(prompt)
    assert [[text for text, _ in segment] for segment in found] == [
        [text for text, _ in segment] for segment in expected
    ]
    weights = [weight for segment in found for _, weight in segment]
    assert weights == pytest.approx([weight for segment in expected for _, weight in segment])


def test_weights_multiply_outwards() -> None:
    found = parse("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).")
    assert [(text, round(weight, 6)) for text, weight in found[0]] == [
        ("a ", 1),
        ("house", 1.573),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641),
        (".", 1.1),
    ]


@given(st.text(st.characters(exclude_characters="()[]\\"), min_size=1))
def test_text_without_syntax_is_one_run_of_weight_one(text: str) -> None:
    if "BREAK" not in text:
        assert parse(text) == literal(text)


@given(st.text())
def test_escaped_text_comes_back(text: str) -> None:
    escaped = "".join("\\" + char if char in "()[]\\" else char for char in text)
    if text and "BREAK" not in text:
        assert parse(escaped) == literal(text)


@given(st.text(st.sampled_from("()[]\\:. 12abBREAK"), max_size=40))
def test_every_prompt_has_an_answer(prompt: str) -> None:
    try:
        segments = parse(prompt)
    except InputError:
        return
    assert segments
    for segment in segments:
        assert all(text for text, _ in segment)


@pytest.mark.parametrize("prompt", ["(a:1.2.3)", "(smile :.)"])
def test_a_weight_that_is_no_number(prompt: str) -> None:
    with pytest.raises(InputError, match="no number") as error:
        parse(prompt)
    assert prompt[prompt.index(":") :] in error.value.found
    assert parse(prompt.replace("(", r"\(")) == literal(prompt)


@pytest.mark.parametrize(
    "prompt", ["(" * 1000 + "a", f"(a:{'9' * 400})", "((a:0):" + "9" * 400 + ")"]
)
def test_a_weight_that_no_number_holds(prompt: str) -> None:
    with pytest.raises(InputError, match="than a number can hold"):
        parse(prompt)


def test_literal_reads_nothing() -> None:
    assert literal("(a:2) BREAK") == ((("(a:2) BREAK", 1.0),),)
    assert literal("") == ((),)
