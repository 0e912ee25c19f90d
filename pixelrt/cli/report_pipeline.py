from __future__ import annotations


def write_pipeline_report(*a):
    raise NotImplementedError
