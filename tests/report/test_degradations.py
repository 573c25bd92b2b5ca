from __future__ import annotations

import io

import matplotlib.image
import pytest
import torch

from deeppatch.data.corruption_names import BENCHMARK
from deeppatch.report import degradations
from deeppatch.report.degradations import by_type, long_table, of_levels_by_type, summary, type_and_severity


def row(correct: int, of: int = 10) -> torch.Tensor:
    return torch.arange(of) < correct


@pytest.fixture
def table():
    """Two networks at two severities of fog, at one of noise, and on one's own rain, of which there are four images."""
    before = (row(9), row(8), row(4), row(6), row(1, 4))
    after = (row(9), row(9), row(7), row(6), row(3, 4))
    unseen = {"pretrained": torch.stack([row(9), row(2)]), "patched": torch.stack([row(9), row(3)])}
    levels = ["fog-1", "fog-5", "gaussian_noise-2", "rain"]
    return long_table({"pretrained": before, "patched": after}, levels, unseen, ["snow-3"])


def test_every_network_and_level_has_a_row_with_its_own_number_of_images(table):
    assert len(table) == 2 * 6
    own = table[table.network == "patched"].set_index("corruption")
    assert own.loc["rain", ["images", "errors", "error_percent"]].tolist() == [4, 1, 25.0]
    assert own.loc["fog", "severity"].tolist() == ["1", "5"]
    assert own["group"].to_dict() == {
        "clean": "clean", "fog": "weather", "gaussian_noise": "noise", "rain": "rain", "snow": "weather"
    }  # fmt: skip
    assert own.index[own.held_out].tolist() == ["snow"]


def test_means_are_over_levels_that_were_not_held_out(table):
    found = summary(table, "pretrained")
    assert found["pretrained"]["mean"] == pytest.approx((20 + 60 + 40 + 75) / 4)
    assert found["pretrained"]["held_out"] == 80
    assert found["patched"]["types"]["fog"] == {"held_out": False, "severities": {"1": 10, "5": 30}, "mean": 20}
    assert found["patched"]["relative_to_pretrained"] == pytest.approx(
        {"fog": 50, "gaussian_noise": 100, "rain": 100 / 3, "snow": 100 * 70 / 80}
    )
    assert found["patched"]["benchmark"] is None


def test_the_mean_of_the_fifteen_leaves_the_extra_types_out():
    levels = [f"{name}-1" for name in (*BENCHMARK, "spatter")]
    table = long_table({"net": torch.stack([row(9), *[row(8)] * 15, row(0)])}, levels, {})
    assert summary(table)["net"]["benchmark"] == 20


def test_the_printed_table_marks_what_was_held_out(table):
    frame = by_type(table).set_index("degradation")
    assert frame.loc["snow *", "patched"] == 30
    assert frame.loc["held out *", "pretrained"] == 20
    assert frame.loc["fog", "pretrained"] == 60
    text = degradations.format_by_type(frame.reset_index())
    assert text.endswith(degradations.NOTE)
    assert max(map(len, text.splitlines())) <= 100


def test_levels_are_averaged_by_type():
    frame = of_levels_by_type({"auroc": {"fog-1": 0.5, "fog-2": 1.0, "snow-1": 0.25}}, ["snow-1"])
    assert frame.set_index("degradation")["auroc"].to_dict() == {"fog": 0.75, "snow *": 0.25}


@pytest.mark.parametrize(
    ("level", "found"),
    [
        ("elastic_transform-4", ("elastic_transform", "4")),
        ("gaussion-s=2.5", ("gaussion", "s=2.5")),
        ("spatial-1", ("spatial", "1")),
        ("my-own-3", ("my-own-3", "")),
    ],
)
def test_the_name_of_a_level_says_type_and_severity(level, found):
    assert type_and_severity(level) == found


def test_maps_have_room_for_fifteen_types(table):
    levels = [f"{name}-{severity}" for name in BENCHMARK for severity in range(1, 6)]
    correct = {"pretrained": torch.stack([row(5)] * 76), "patched": torch.stack([row(6)] * 76)}
    whole = long_table(correct, levels, {})
    for image in (degradations.accuracy_maps(whole, "net"), degradations.difference_maps(whole, "pretrained", "net")):
        height, width, _channels = matplotlib.image.imread(io.BytesIO(image)).shape
        assert height / 15 > 25, "pixels of a row"
        assert width > 700
    assert degradations.accuracy_maps(table, "net").startswith(b"\x89PNG"), "cells may be empty"
