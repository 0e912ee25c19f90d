"""Measuring what a bundle costs on this machine, for ``pixelrt bench`` and ``benchmarks/``."""
