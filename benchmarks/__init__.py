"""Measurements that are made once: peers side by side, growth, GPU. docs/benchmarks.md."""
