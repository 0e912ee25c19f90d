"""Percentiles, steadiness, warm-up and measuring, on series that are known."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixelrt.bench.statistics import judge, percentile, spread, summarise, window_medians
from pixelrt.bench.steady import Effort, WarmupLimits, measure, warm_up

TIMES = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=60)


class FakeClock:
    """A clock that runs add to; nothing else moves it."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def taking(self, times: Iterable[float]) -> Callable[[], float]:
        """A run that takes each of ``times`` in turn, the last one for ever."""
        series = list(times)

        def run() -> float:
            took = series.pop(0) if len(series) > 1 else series[0]
            self.now += took
            return took

        return run


def test_percentiles_of_a_known_series() -> None:
    found = summarise([float(n) for n in range(1, 102)])
    assert (found.runs, found.minimum, found.maximum, found.mean) == (101, 1, 101, 51)
    assert (found.p50, found.p90, found.p95, found.p99) == (51, 91, 96, 100)


def test_percentiles_lie_between_the_closest_ranks() -> None:
    assert percentile([1.0, 2.0], 50) == 1.5
    assert percentile([10.0, 0.0, 20.0], 75) == 15.0
    assert percentile([7.0], 99) == 7.0


def test_no_samples_have_no_percentiles() -> None:
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 50)


@given(TIMES)
def test_percentiles_rise(times: list[float]) -> None:
    found = summarise(times)
    rising = (found.minimum, found.p50, found.p90, found.p95, found.p99, found.maximum)
    assert all(low <= high * (1 + 1e-12) for low, high in pairwise(rising))


def test_spread_is_relative_to_the_fastest() -> None:
    assert spread([1.0, 1.1, 1.05]) == pytest.approx(0.1)
    assert spread([0.0, 0.0]) == 0
    assert spread([0.0, 1.0]) == float("inf")


def test_windows_are_consecutive() -> None:
    assert window_medians([1, 1, 1, 5, 5, 5], 2) == [1, 5]
    assert window_medians([1, 2], 5) == [1, 2]


@pytest.mark.parametrize(
    ("series", "stable"),
    [
        ([1.0] * 20, True),
        ([1.0, 1.04, 0.98, 1.02] * 10, True),
        ([1.0] * 10 + [1.3] * 10, False),  # a step
        ([1 + 0.02 * n for n in range(20)], False),  # a drift
        ([1.0] * 19 + [50.0], True),  # one outlier: the percentiles tell of it
        ([1.0, 1.0, 2.0], False),
    ],
)
def test_stability(series: list[float], stable: bool) -> None:
    found = judge(series)
    assert found.stable == stable
    assert bool(found.reasons) != stable


def test_too_few_runs_and_an_unfinished_warm_up_are_said() -> None:
    assert "2 runs are too few" in judge([1.0, 1.0]).reasons[0]
    assert "warm-up" in judge([1.0] * 9, warmed_up=False).reasons[0]


LIMITS = WarmupLimits(window_seconds=1.0, windows=3, max_seconds=50, max_runs=1000)


def test_warm_up_goes_on_until_windows_agree() -> None:
    clock = FakeClock()
    found = warm_up(clock.taking([30.0, 6.0, 3.0, 2.0, 1.0]), LIMITS, clock)
    assert found.steady
    assert found.first == 30.0
    assert found.runs == 7  # 30, 6, 3, 2, and three of 1
    assert found.spread == 0


def test_without_a_warm_up_nothing_runs() -> None:
    found = warm_up(lambda: pytest.fail("it ran"), WarmupLimits(max_runs=0))
    assert (found.runs, found.steady) == (0, False)


def test_warm_up_of_short_runs_fills_its_windows() -> None:
    clock = FakeClock()
    found = warm_up(clock.taking([0.1]), LIMITS, clock)
    assert found.steady
    assert 30 <= found.runs <= 33


@pytest.mark.parametrize(
    ("limits", "runs"),
    [
        (WarmupLimits(1.0, max_seconds=10, max_runs=1000), 5),
        (WarmupLimits(1.0, max_seconds=1e9, max_runs=7), 7),
    ],
)
def test_warm_up_gives_up_and_says_so(limits: WarmupLimits, runs: int) -> None:
    clock = FakeClock()
    found = warm_up(clock.taking([1.5**n for n in range(60)]), limits, clock)
    assert not found.steady
    assert found.runs == runs


def test_measuring_for_a_number_of_runs() -> None:
    clock = FakeClock()
    found = measure(clock.taking([1.0, 2.0, 3.0]), Effort(3), clock)
    assert found.seconds == found.values == [1.0, 2.0, 3.0]


def test_measuring_for_a_time_has_a_floor() -> None:
    clock = FakeClock()
    assert len(measure(clock.taking([9.0]), Effort(seconds=5, fewest=4), clock).seconds) == 4
    assert len(measure(clock.taking([0.5]), Effort(seconds=5, fewest=4), clock).seconds) == 10
