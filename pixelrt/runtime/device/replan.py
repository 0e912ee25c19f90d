"""Out of device memory: plan smaller and start the image again, never go on in the middle."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pixelrt.errors import OutOfMemoryError

Plan = TypeVar("Plan")
Result = TypeVar("Result")


def _nothing() -> None:
    pass


def _unheard(_: str) -> None:
    pass


def run_with_replan(
    plan_for: Callable[[int], Plan],
    run: Callable[[Plan], Result],
    budget: int,
    *,
    release: Callable[[], None] = _nothing,
    report: Callable[[str], None] = _unheard,
) -> Result:
    """``run(plan_for(budget))``, with the budget halved whenever the device has too little.

    ``plan_for(bytes)`` gives a plan or raises ``OutOfMemoryError`` below the smallest one;
    plans are compared by ``==``, and one that failed is not tried again. ``run`` does the
    whole image and frees what it took before it raises; ``release`` then frees caches.
    ``report`` hears of every new plan. Raises ``OutOfMemoryError`` with what the smallest
    plan needed and what the device said, once no smaller plan is left.
    """
    plan = plan_for(budget)
    while True:
        try:
            return run(plan)
        except OutOfMemoryError as exc:
            # Its frames hold the memory of the run that failed.
            failure = exc.with_traceback(None)
            failure.__context__ = failure.__cause__ = None
        release()
        failed = plan
        budget, plan = _smaller(plan_for, budget, failed, failure)
        report(f"out of device memory with {failed}; again from the start with {plan}")


def _smaller(
    plan_for: Callable[[int], Plan], budget: int, failed: Plan, failure: OutOfMemoryError
) -> tuple[int, Plan]:
    """The first other plan as the budget is halved, and that budget."""
    while budget > 0:
        budget //= 2
        try:
            plan = plan_for(budget)
        except OutOfMemoryError as smallest:
            raise OutOfMemoryError(
                "the device has too little memory, even for the smallest plan",
                found=f"{failure.message}; {failure.found}" if failure.found else failure.message,
                expected=smallest.expected or f"memory for {failed}",
                hint=smallest.hint or failure.hint,
            ) from failure
        if plan != failed:
            return budget, plan
    raise OutOfMemoryError(
        f"the device has too little memory for {failed}, and there is no smaller plan",
        found=f"{failure.message}; {failure.found}" if failure.found else failure.message,
        expected=failure.expected,
        hint=failure.hint,
    ) from failure
