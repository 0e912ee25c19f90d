"""Bars on standard error."""

from __future__ import annotations

import pytest

from pixelrt.cli.terminal import stage_bar


def test_a_bar_of_stages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with stage_bar("denoising", enabled=True, counts="steps") as bar:
        assert bar is None, "standard error is no terminal here"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    with stage_bar("denoising", enabled=False, counts="steps") as bar:
        assert bar is None
    stages = (("denoising", "steps"), ("decoding in tiles", "tiles"))
    for count in (1, 2):
        with stage_bar("denoising", enabled=True, counts="steps") as bar:
            assert bar is not None
            for title, counts in stages[:count]:
                bar(title, 0, 6, counts)
                bar(title, 3, 6, counts)
            capsys.readouterr()
        last = capsys.readouterr().err  # as it was left
        title, counts = stages[count - 1]
        assert title in last
        assert f"3/6 {counts}" in last
