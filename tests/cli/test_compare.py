"""compare as a command."""

from __future__ import annotations


def test_try(bench):
    print(bench.ran("compare").out)
    assert 0
