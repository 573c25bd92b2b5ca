"""The benchmark of scale: powers are found, jobs are scheduled as by hand, and every stage can be timed."""

from __future__ import annotations

import argparse
import itertools
import random
from pathlib import Path

import pandas as pd
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def scale():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        import scale as module

        yield module


def test_powers_of_exact_growth_are_found(scale):
    rows = [
        {"stage": "s", "factor": name, "value": value, "seconds": 3 * value**power}
        for name, power in (("filters", 2), ("images", 1), ("depth", 0))
        for value in (2, 4, 8)
    ]
    found = scale.fits(pd.DataFrame(rows)).set_index("factor")
    assert found["power"].to_dict() == {"filters": 2, "images": 1, "depth": 0}
    assert set(found["at most off"]) == {1}


def plain_end(seconds, reads, machines, order):
    """When the last job ends, if each machine takes the first job of `order` that may begin, second by second."""
    ends, now = {}, 0
    while len(ends) < len(seconds):
        busy = sum(end > now for end in ends.values())
        for job in order:
            inputs_there = all(ends.get(each, now + 1) <= now for each in reads[job])
            if job not in ends and busy < machines and inputs_there:
                ends[job], busy = now + seconds[job], busy + 1
        now += 1
    return max(ends.values())


def test_schedules_lie_between_the_bounds_and_equal_the_plain_rule(scale):
    draw = random.Random(0)  # noqa: S311
    for machines, _ in itertools.product((1, 2, 3), range(20)):
        names = "abcdef"
        seconds = {name: draw.randint(1, 5) for name in names}
        reads = {name: {each for each in names[:index] if draw.random() < 0.3} for index, name in enumerate(names)}

        def way(job, seconds=seconds, reads=reads):
            return seconds[job] + max((way(each) for each in seconds if job in reads[each]), default=0)

        order = sorted(names, key=lambda job: (-way(job), job))
        found = scale.makespan(seconds, reads, machines)
        assert found == plain_end(seconds, reads, machines, order)
        assert max(*map(way, names), sum(seconds.values()) / machines) <= found <= sum(seconds.values())
    table = scale.on_machines({"a": 3600.0, "b": 3600.0}, {"a": set(), "b": set()}).set_index("machines")
    assert table["hours"].to_dict() == {1: 2.0, 8: 1.0, 64: 1.0}
    assert table["speed-up"].to_dict() == {1: 1.0, 8: 2.0, 64: 2.0}


def test_every_stage_is_timed_at_every_value(scale, monkeypatch):
    monkeypatch.setattr(scale, "USUAL", {"filters": 4, "images": 32, "size": 8, "depth": 1})
    monkeypatch.setattr(scale, "FACTORS", {"filters": (2, 4, 8)})
    options = argparse.Namespace(rounds=1, small=True)
    frame = pd.DataFrame(list(scale.measured(options, torch.device("cpu"))))
    assert frame.groupby("stage")["value"].apply(list).map(tuple).nunique() == 1
    assert sorted(set(frame["value"])) == [2, 4], "the largest is left out"
    assert (frame["seconds"] > 0).all()
    assert len(set(frame["stage"])) == 12


def test_the_page_gets_a_place_for_each_table_once(scale, monkeypatch, tmp_path):
    page = tmp_path / "docs" / "scale.md"
    page.parent.mkdir()
    page.write_text((ROOT / "docs" / "scale.md").read_text())
    monkeypatch.setattr(scale, "PAGE", page)
    for with_study in (False, True, True):
        scale.write_page(tmp_path / "results" / "scale.csv", with_study=with_study)
    text = page.read_text()
    names = ("scale-fits", "scale", "scale-study")
    assert [text.count(f"<!-- table: results/{name}.csv; commands -->") for name in names] == [1, 1, 1]
    assert text.count("<!-- end -->") == 3
    assert "No tables stand here yet" not in text
