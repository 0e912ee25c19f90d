"""Prompts to windows of tokens, and the encoder's states to embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pixelrt.errors import BundleError, InputError, UsageError
from pixelrt.export.diffusion.tokenizer import export_tokenizer
from pixelrt.runtime.diffusion.text.batch import TokenBatch, prepare, prepare_each
from pixelrt.runtime.diffusion.text.embeddings import check_same_shape, ready_embeddings
from pixelrt.runtime.diffusion.text.emphasis import assemble, first_chunk
from pixelrt.runtime.diffusion.text.tokenizer import Tokenizer
from tests.clip_tokenizers import BOS, EOS, vocabulary, write_folder

VOCABULARY = vocabulary()
B, E = VOCABULARY[BOS], VOCABULARY[EOS]
THE, CAT, COMMA = VOCABULARY["the</w>"], VOCABULARY["cat</w>"], VOCABULARY[",</w>"]
DIGITS = [VOCABULARY[f"{digit}</w>"] for digit in range(10)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="module")
def small(folder: Path) -> Tokenizer:
    """Windows of 8: room for 6 tokens. Pads with "!", id 0."""
    return Tokenizer(*export_tokenizer(write_folder(folder / "8", pad="!", model_max_length=8)))


@pytest.fixture(scope="module")
def usual(folder: Path) -> Tokenizer:
    """As SD 1.x: windows of 77, padded with the end of text."""
    return Tokenizer(*export_tokenizer(write_folder(folder / "77")))


def numbers(*values: int) -> list[int]:
    return [DIGITS[value] for value in values]


def test_a_short_prompt(small: Tokenizer) -> None:
    batch = prepare(["the cat", ""], small)
    assert batch.ids.tolist() == [[B, THE, CAT, E, 0, 0, 0, 0], [B, E, 0, 0, 0, 0, 0, 0]]
    assert batch.ids.dtype == np.int64
    assert batch.mask.sum(1).tolist() == [4, 2]
    assert batch.mask[0, :4].all()
    assert batch.weights.shape == (2, 8)
    assert batch.weights.dtype == np.float32
    assert (batch.weights == 1).all()
    assert (batch.chunks, batch.notes) == (1, ())


def test_padding_on_the_left(folder: Path) -> None:
    data, settings = export_tokenizer(
        write_folder(folder / "left", model_max_length=6, padding_side="left")
    )
    batch = prepare(["(the:2)"], Tokenizer(data, settings))
    assert batch.ids.tolist() == [[E, E, E, B, THE, E]]
    assert batch.mask.tolist() == [[False, False, False, True, True, True]]
    assert batch.weights.tolist() == [[1, 1, 1, 1, 2, 1]]


def test_weights_stand_at_their_tokens(small: Tokenizer) -> None:
    batch = prepare(["the (cat:1.5) [1] 2"], small)
    assert batch.ids[0, :6].tolist() == [B, THE, CAT, DIGITS[1], DIGITS[2], E]
    expected = np.array([[1, 1, 1.5, 1 / 1.1, 1, 1, 1, 1]], np.float32)
    np.testing.assert_array_equal(batch.weights, expected)


def test_brackets_are_text_without_weighting(small: Tokenizer) -> None:
    batch = prepare(["(1:2)"], small, weighting=False)
    assert (batch.weights == 1).all()
    assert batch.ids[0, 1:6].tolist() == small.ids("(1:2)")
    assert prepare(["1 BREAK 2"], small, weighting=False).chunks == 2  # the letters of the word


def test_a_long_prompt_is_cut_into_windows(small: Tokenizer) -> None:
    batch = prepare(["1 2 3 4 5 6 (7:2) 8", "9"], small)
    assert batch.chunks == 2
    assert batch.ids.tolist() == [
        [B, *numbers(1, 2, 3, 4, 5, 6), E],
        [B, *numbers(7, 8), E, 0, 0, 0, 0],
        [B, *numbers(9), E, 0, 0, 0, 0, 0],
        [B, E, 0, 0, 0, 0, 0, 0],
    ]
    assert batch.weights.shape == (2, 16)
    assert batch.weights[0].tolist() == [1] * 9 + [2] + [1] * 6
    assert batch.mask.sum(1).tolist() == [8, 4, 3, 2]


def test_a_full_window_is_not_two(small: Tokenizer) -> None:
    assert prepare(["1 2 3 4 5 6"], small).chunks == 1
    assert prepare(["1 2 3 4 5 6 7 8 9 0 1 2"], small).chunks == 2


@pytest.mark.parametrize(
    ("prompt", "windows"),
    [
        ("1 BREAK 2", [numbers(1), numbers(2)]),
        ("1 BREAK", [numbers(1)]),
        ("BREAK 1", [[], numbers(1)]),
        ("BREAK", [[]]),
        ("1 BREAK BREAK 2", [numbers(1), [], numbers(2)]),
        ("1 2 3 4 5 6 BREAK 7", [numbers(1, 2, 3, 4, 5, 6), numbers(7)]),
        ("1 2 3 4 5 6 7 BREAK 8", [numbers(1, 2, 3, 4, 5, 6), numbers(7), numbers(8)]),
        ("(1 BREAK 2:1.5)", [numbers(1), numbers(2)]),
    ],
)
def test_break_begins_a_window(small: Tokenizer, prompt: str, windows: list[list[int]]) -> None:
    batch = prepare([prompt], small)
    assert [row[1 : row.index(E)] for row in batch.ids.tolist()] == windows


@pytest.mark.parametrize(
    ("prompt", "first"),
    [
        ("1 2 , 3 4 5 6 7", 3),  # after the last comma
        ("1 , 2 , 3 4 5 6", 4),
        ("1 2 3 4 5 , 6 7", 6),
        ("1 2 3 4 5 6 , 7", 6),  # a comma that begins the next window
        ("1 2 , 3 4 5 , 7", 6),
        (", 1 2 3 4 5 6", 1),
    ],
)
def test_a_window_ends_after_a_comma(small: Tokenizer, prompt: str, first: int) -> None:
    tokens = small.ids(prompt)
    rows = prepare([prompt], small).ids.tolist()
    assert [row[1 : row.index(E)] for row in rows] == [tokens[:first], tokens[first:]]


def test_a_comma_far_from_the_end_is_passed_over(usual: Tokenizer) -> None:
    for before, first in ((54, 75), (55, 56)):
        prompt = "1 " * before + ", " + "2 " * 40
        rows = prepare([prompt], usual).ids.tolist()
        assert rows[0].index(E) - 1 == first


@given(
    st.lists(st.sampled_from(["1", "(2:1.5)", ",", "the", "[cat]", "😀", "BREAK"]), max_size=60),
    st.integers(1, 4),
)
def test_windows_hold_the_whole_prompt_in_order(
    small: Tokenizer, words: list[str], chunks: int
) -> None:
    batch = prepare([" ".join(words), "the"], small, chunks=chunks)
    rows = [row[1 : row.index(E)] for row in batch.ids.tolist()]
    assert len(rows) == 2 * batch.chunks
    assert batch.chunks >= chunks
    plain = " ".join(word.strip("([:1.5])") or word for word in words if word != "BREAK")
    assert [token for row in rows[: batch.chunks] for token in row] == small.ids(plain)
    weights = {VOCABULARY["2</w>"]: 1.5, CAT: 1 / 1.1}
    for ids, row in zip(batch.ids, batch.weights.reshape(batch.ids.shape), strict=True):
        expected = [weights.get(token, 1.0) for token in ids.tolist()]
        np.testing.assert_array_equal(row, np.array(expected, np.float32))


def test_truncation_is_that_of_diffusers(usual: Tokenizer, folder: Path) -> None:
    from transformers import CLIPTokenizer

    theirs = CLIPTokenizer.from_pretrained(folder / "77", local_files_only=True)
    prompts = ["the cat, " * 40 + "photo", "photo of é"]
    batch = prepare(prompts, usual, long_prompts="truncate", weighting=False)
    expected = theirs(prompts, padding="max_length", max_length=77, truncation=True)
    assert batch.ids.tolist() == expected.input_ids
    assert batch.mask.tolist() == np.array(expected.attention_mask, bool).tolist()
    [note] = batch.notes
    assert "last 46 were cut" in note
    assert "the encoder takes 75" in note.replace("text ", "")
    weighted = prepare(prompts, usual, long_prompts="truncate")
    np.testing.assert_array_equal(weighted.ids, batch.ids)


def test_truncation_goes_on_across_break(small: Tokenizer) -> None:
    batch = prepare(["(1:2) BREAK 3 4 5 6 7 8 9"], small, long_prompts="truncate")
    assert batch.ids.tolist() == [[B, *numbers(1, 3, 4, 5, 6, 7), E]]
    assert batch.weights[0, 1] == 2
    assert "BREAK" in batch.notes[0]
    assert batch.notes[1].endswith("the last 2 were cut: '8 9'")


def test_a_long_prompt_can_be_an_error(small: Tokenizer) -> None:
    assert prepare(["1 2 3 4 5 6"], small, long_prompts="error").chunks == 1
    for prompt in ("1 2 3 4 5 6 7", "1 BREAK 2"):
        with pytest.raises(InputError, match="longer than the text encoder takes") as error:
            prepare(["", prompt], small, long_prompts="error")
        assert prompt in error.value.message
        assert "in 2 windows" in error.value.found
        assert "at most 6 tokens" in error.value.expected


def test_wrong_options(small: Tokenizer) -> None:
    wrong: Any = "cut"
    with pytest.raises(UsageError, match="chunk, truncate, error"):
        prepare([""], small, long_prompts=wrong)
    with pytest.raises(UsageError, match="list of texts"):
        prepare("a prompt", small)
    wrong = ["", None, 3]
    with pytest.raises(UsageError, match="str, NoneType, int"):
        prepare(wrong, small)
    with pytest.raises(UsageError, match="no prompt"):
        prepare([], small)


def test_several_encoders_get_as_many_windows(small: Tokenizer, usual: Tokenizer) -> None:
    first, second = prepare_each([["1 2 3 4 5 6 7", ""], ["the", "1 BREAK 2"]], [small, usual])
    assert first.chunks == second.chunks == 2
    assert first.ids.shape == (4, 8)
    assert second.ids.shape == (4, 77)
    first, second = prepare_each([["1"], ["1"]], [small, usual], chunks=3)
    assert first.chunks == second.chunks == 3


def states(batch: TokenBatch, channels: int = 5, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return rng.normal(0.3, 1, (*batch.ids.shape, channels)).astype(np.float32)


def test_embeddings_without_weights_stay_bit_for_bit(small: Tokenizer) -> None:
    batch = prepare(["1 2 3 4 5 6 7 8", "(the:1.0) cat"], small)
    hidden = states(batch)
    found = assemble(hidden, batch)
    assert found.shape == (2, 16, 5)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[0], np.concatenate([hidden[0], hidden[1]]))
    np.testing.assert_array_equal(found[1], np.concatenate([hidden[2], hidden[3]]))


def test_weighted_windows_keep_their_mean(small: Tokenizer) -> None:
    batch = prepare(["1 (2:1.5) 3 4 5 6 7", "the [cat]"], small)
    hidden = states(batch)
    before = hidden.copy()
    found = assemble(hidden, batch)
    np.testing.assert_array_equal(hidden, before)
    np.testing.assert_array_equal(found[0, 8:], hidden[1])  # no weight in this window
    np.testing.assert_array_equal(found[1, 8:], hidden[3])
    for window, original, row, weight in (
        (found[0, :8], hidden[0], 2, 1.5),
        (found[1, :8], hidden[2], 2, 1 / 1.1),
    ):
        assert window.mean() == pytest.approx(original.mean(), rel=1e-6)
        ratios = window / original
        scale = ratios[0, 0]
        expected = np.full_like(ratios, scale)
        expected[row] *= weight
        np.testing.assert_allclose(ratios, expected, rtol=1e-5)


def test_weights_alone(small: Tokenizer) -> None:
    batch = prepare(["1 (2:1.5) (3:0) (4:-1)"], small)
    hidden = states(batch)
    expected = hidden[0] * np.array([1, 1, 1.5, 0, -1, 1, 1, 1], np.float32)[:, None]
    np.testing.assert_array_equal(assemble(hidden, batch, keep_mean=False)[0], expected)


def test_half_precision_stays_half_precision(small: Tokenizer) -> None:
    batch = prepare(["1 (2:1.5)"], small)
    hidden = states(batch).astype(np.float16)
    found = assemble(hidden, batch)
    assert found.dtype == np.float16
    wide = assemble(hidden.astype(np.float32), batch)
    np.testing.assert_array_equal(found, wide.astype(np.float16))


def test_a_prompt_does_not_depend_on_its_neighbours(small: Tokenizer) -> None:
    both = prepare(["(1:1.4) 2", "[the] cat"], small)
    hidden = states(both)
    alone = prepare(["(1:1.4) 2"], small)
    np.testing.assert_array_equal(assemble(hidden, both)[:1], assemble(hidden[:1], alone))


def test_weights_that_leave_nothing_finite(small: Tokenizer) -> None:
    batch = prepare(["(1:2)"], small)
    hidden = states(batch)
    hidden[0] = 0
    hidden[0, 0], hidden[0, 1] = 2, -1  # weighted: 2 - 2, no mean to scale back from
    with pytest.raises(InputError, match="not finite") as error:
        assemble(hidden, batch)
    assert "from 1 to 2" in error.value.found
    assert np.isfinite(assemble(hidden, batch, keep_mean=False)).all()
    huge = prepare(["(1:1000000)"], small)
    with pytest.raises(InputError, match="not finite"):
        assemble(states(huge).astype(np.float16), huge, keep_mean=False)


def test_pooled_embeddings_are_those_of_the_first_window(small: Tokenizer) -> None:
    batch = prepare(["1 2 3 4 5 6 7 8", "the"], small)
    pooled = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_array_equal(first_chunk(pooled, batch), pooled[[0, 2]])


@pytest.mark.parametrize("shape", [(2, 8), (1, 8, 5), (2, 7, 5), (2, 8, 5, 1)])
def test_states_of_another_shape(small: Tokenizer, shape: tuple[int, ...]) -> None:
    batch = prepare(["1", "2"], small)
    with pytest.raises(BundleError, match="hidden states") as error:
        assemble(np.zeros(shape, np.float32), batch)
    assert error.value.found == str(shape)
    assert error.value.expected == "(2, 8, C)"
    with pytest.raises(BundleError, match="pooled embeddings"):
        first_chunk(np.zeros((3, 4), np.float32), batch)


def test_ready_embeddings_are_taken() -> None:
    given = np.ones((2, 77, 4), np.float64)
    found = ready_embeddings("prompt_embeds", given, ("B", "T", 4))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, given)
    same = np.ones((2, 77, 4), np.float32)
    assert ready_embeddings("prompt_embeds", same, ("B", "T", 4)) is same
    assert ready_embeddings("pooled_prompt_embeds", [[1.5, 2.5]], ("B", 2)).shape == (1, 2)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.zeros((2, 77, 5), np.float32), r"(2, 77, 5)"),
        (np.zeros((77, 4), np.float32), "(77, 4)"),
        (np.zeros((0, 77, 4), np.float32), "(0, 77, 4)"),
        (np.zeros((2, 77, 4), np.int64), "dtype int64"),
        ([[1.0], [1.0, 2.0]], "inhomogeneous"),
        ("the cat", "dtype <U7"),
        (None, "dtype object"),
    ],
)
def test_ready_embeddings_that_do_not_fit(value: Any, said: str) -> None:
    with pytest.raises(InputError, match="prompt_embeds") as error:
        ready_embeddings("prompt_embeds", value, ("B", "T", 4))
    assert said in error.value.found
    assert error.value.expected


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_ready_embeddings_are_finite(value: float) -> None:
    with pytest.raises(InputError, match="NaN or infinite"):
        ready_embeddings("prompt_embeds", np.full((1, 2, 3), value), ("B", "T", 3))


def test_positive_and_negative_embeddings_have_one_shape() -> None:
    one, other = np.zeros((1, 77, 4), np.float32), np.zeros((1, 154, 4), np.float32)
    check_same_shape("prompt_embeds", one, "negative_prompt_embeds", one.copy())
    with pytest.raises(InputError, match="prompt_embeds and negative_prompt_embeds") as error:
        check_same_shape("prompt_embeds", one, "negative_prompt_embeds", other)
    assert error.value.found == "(1, 77, 4) and (1, 154, 4)"
