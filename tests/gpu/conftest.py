"""One file at a time: free memory of the device is measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock


@pytest.fixture(scope="module", autouse=True)
def alone_on_the_gpu(run_folder: Path) -> Iterator[None]:
    """Test processes that run beside each other take turns."""
    with FileLock(run_folder / "gpu.lock"):
        yield
