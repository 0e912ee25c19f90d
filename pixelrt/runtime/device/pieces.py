"""Runs of more or fewer pictures than the profiles of a plan take. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pixelrt.plans.axis_profiles import AxisProfile, Lengths, choose_axes
from pixelrt.runtime.backends.base import Array
from pixelrt.spec import TensorSpec


@dataclass(frozen=True)
class Pieces:
    """A run of more or fewer rows than a profile takes, cut along the axis that counts them.

    ``lengths``: of each piece. ``rows``: which rows go into each; the last one is repeated where a
    piece would be too short. ``count``: how many there are.
    """

    lengths: Lengths
    rows: tuple[Sequence[int], ...]
    axis: str
    count: int

    def cut(
        self, tensors: Sequence[TensorSpec], values: Mapping[str, Array], rows: Sequence[int]
    ) -> dict[str, Array]:
        """The inputs of one piece; those without the axis as they are."""
        whole = len(self.rows) == 1 and len(rows) == self.count
        return {
            one.name: values[one.name]
            if whole or one.shape[0] != self.axis
            else values[one.name][rows]
            for one in tensors
        }

    def join(
        self, tensors: Sequence[TensorSpec], parts: Sequence[Mapping[str, Array]]
    ) -> dict[str, Array]:
        """The outputs of all pieces, one after the other."""
        if len(parts) == 1 and len(self.rows[0]) == self.count:
            return dict(parts[0])
        return {
            one.name: np.concatenate([part[one.name] for part in parts])[: self.count]
            for one in tensors
        }


def pieces_of(
    profiles: Sequence[AxisProfile], outputs: Sequence[TensorSpec], lengths: Mapping[str, int]
) -> Pieces:
    """``lengths`` as they fit the profiles: in one piece where one holds them, else in as few
    equal pieces of rows as it takes. Raises ``UsageError`` where none does.

    Rows are counted by the first axis of all outputs, if it is the same.
    """
    firsts = {str(tensor.shape[0]) for tensor in outputs}
    axis = firsts.pop() if len(firsts) == 1 else ""
    order = [name for name, _ in profiles[0].ranges]
    if axis not in lengths or any(profile.holds(lengths) for profile in profiles):
        choose_axes(profiles, lengths)
        count = lengths.get(axis, 1)
        whole = Lengths(tuple((name, lengths[name]) for name in order))
        return Pieces(whole, (range(count),), axis, count)
    count = lengths[axis]
    sizes = (dict(profile.ranges)[axis].nearest(count) for profile in profiles)
    holding = [
        size for size in sizes if any(one.holds({**lengths, axis: size}) for one in profiles)
    ]
    if not holding:
        choose_axes(profiles, lengths)
    most = max(holding)
    number = -(-count // most)
    size = -(-count // number)
    if not any(profile.holds({**lengths, axis: size}) for profile in profiles):
        size = most
    rows = [
        [min(row, count - 1) for row in range(start, start + size)]
        for start in range(0, count, size)
    ]
    each = Lengths(tuple((name, size if name == axis else lengths[name]) for name in order))
    return Pieces(each, tuple(rows), axis, count)
