"""Where pixelrt keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """``PIXELRT_CACHE``, or the user's cache folder of this system."""
    chosen = os.environ.get("PIXELRT_CACHE")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("pixelrt"))
