"""What a manifest may not say about segments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from pixelrt.manifest import Network
from pixelrt.segments import problems_of
from tests.segments.small import network


def problems(change: Callable[[list[Any]], object]) -> str:
    plain = msgspec.to_builtins(network())
    change(plain["segments"])
    return "; ".join(problems_of(msgspec.convert(plain, Network)))


def test_a_right_chain_has_no_problems() -> None:
    assert problems(lambda s: None) == ""
    assert problems(lambda s: s.clear()) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s[0]["graph"].update(role="core"), "is not of role network"),
        (lambda s: s[0]["graph"].update(outputs=[]), "is not of role network with one output"),
        (lambda s: s[0]["graph"]["outputs"][0].update(shape=[1, 2]), "is not (B, channels, H, W)"),
        (lambda s: s[0].update(halo={}), "has no halo"),
        (lambda s: s[0].update(halo={"pixels": -1}), "has no halo, or a negative one"),
        (lambda s: s[0].update(halo={"a": 1}), "reads other values than it has a halo for"),
        (lambda s: s[0].update(pixels=[0, 1]), "of less than nothing"),
        (lambda s: s[0].update(memory=0), "of less than nothing"),
        (lambda s: s.pop(1), "graphs/c.onnx reads b"),
        (lambda s: s.pop(), "do not end in its output alone"),
        (lambda s: s.append(s[0]), "gives nothing new"),
        (lambda s: s[1].update(pixels=[1, 1]) or s[3].update(halo={"c": 1, "b": 0}), ""),
        (lambda s: s[2].update(pixels=[1, 2]), "reads values of different sizes in tiles"),
        (lambda s: s[4]["graph"]["inputs"][1].update(shape=["B", 8, 1, 1]), "other channels"),
        (lambda s: s[1]["norm"].update(value="b"), "normalises b, which no segment gives"),
        (lambda s: s[1]["norm"].update(groups=3), "normalises 4 channels in 3 groups"),
        (lambda s: s[3]["norm"].update(groups=0), "normalises 4 channels in 0 groups"),
    ],
)
def test_what_is_wrong_is_told(change: Callable[[list[Any]], object], words: str) -> None:
    found = problems(change)
    assert words in found
    assert bool(found) == bool(words)


def test_a_value_has_one_kind_of_groups() -> None:
    def again(s: list[Any]) -> None:
        s[3]["norm"].update(value="b", groups=4)

    assert "normalises b in other groups" in problems(again)


def test_a_network_of_several_inputs_has_no_segments() -> None:
    plain = msgspec.to_builtins(network())
    plain["component"]["graphs"][0]["inputs"] *= 2
    found = list(problems_of(msgspec.convert(plain, Network)))
    assert found == ["network whole has segments but not one input and one output"]
