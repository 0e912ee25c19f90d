"""The smallest set of nodes that has to stay float32 for a target, by measurement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

Keep = frozenset[str]
Error = Callable[[Keep], float]
"""Worst mean squared error of the graph with these nodes kept; infinite with NaN or Inf."""

GROUPS = 16


def smallest_keep(
    nodes: Sequence[str], cost: Mapping[str, int], error: Error, limit: float, evaluations: int
) -> dict[str, float]:
    """Nodes to keep, each with the error of its group when converted alone.

    ``nodes`` in graph order, all convertible. Groups of neighbours are converted one at a
    time and ranked by their error; the worst are kept until the rest meets ``limit``; then
    halves of what is kept are given back, the costliest first, as long as the limit
    holds. No single node of the result can be given back, unless ``evaluations`` calls
    of ``error`` did not suffice to find out. Keeping all of ``nodes`` must meet the limit.
    """
    search = _Search(error, limit, evaluations)
    groups = _groups(nodes)
    everything = frozenset(nodes)
    alone = {group: error(everything - frozenset(group)) for group in groups}
    kept = search.add(sorted(groups, key=lambda group: -alone[group]))
    for group in sorted(kept, key=lambda group: -sum(cost.get(n, 0) for n in group)):
        search.release(group)
    of_node = {name: alone[group] for group in groups for name in group}
    return {name: of_node[name] for name in nodes if name in search.keep}


def _groups(nodes: Sequence[str]) -> list[tuple[str, ...]]:
    size = -(-len(nodes) // GROUPS)
    return [tuple(nodes[at : at + size]) for at in range(0, len(nodes), size)]


class _Search:
    def __init__(self, error: Error, limit: float, evaluations: int) -> None:
        self.error = error
        self.limit = limit
        self.left = evaluations
        self.keep: Keep = frozenset()

    def add(self, ranked: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
        """Bisect the ranking for the shortest beginning that meets the limit when kept."""
        low, high = 0, len(ranked)
        while low < high:
            middle = (low + high) // 2
            if self._meets(_union(ranked[:middle])):
                high = middle
            else:
                low = middle + 1
        self.keep = _union(ranked[:low])
        return list(ranked[:low])

    def release(self, nodes: tuple[str, ...]) -> None:
        """Give back ``nodes``, or as many of them as the limit lets."""
        if self.left <= 0:
            return
        self.left -= 1
        without = self.keep - frozenset(nodes)
        if self._meets(without):
            self.keep = without
        elif len(nodes) > 1:
            half = len(nodes) // 2
            self.release(nodes[:half])
            self.release(nodes[half:])

    def _meets(self, keep: Keep) -> bool:
        return self.error(keep) <= self.limit


def _union(groups: Sequence[tuple[str, ...]]) -> Keep:
    return frozenset(name for group in groups for name in group)
