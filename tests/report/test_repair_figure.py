"""The figure of a repair: lines over the levels, clean accuracy magnified, spread where there are several seeds."""

from __future__ import annotations

import pandas as pd
import pytest
from PIL import Image

from deeppatch.report.repair_figure import draw_repair

CURVES = {
    "pretrained": [93.0, 80.0, 40.0],
    "finetuned": [91.0, 90.0, 70.0],
    "switched": [92.9, 89.0, 69.0],
    "patched": [90.0, 88.5, 69.0],
}


def table(seeds: int, *networks: str) -> pd.DataFrame:
    """Seed n is n points better than seed 0."""
    return pd.DataFrame([
        {"seed": seed, "network": name, **{level: value + seed for level, value in zip(LEVELS, values, strict=True)}}
        for seed in range(seeds) for name in networks or CURVES
        for values in [CURVES.get(name, CURVES["patched"])]
    ]).assign(mixed=0.0)  # fmt: skip


LEVELS = ["clean", "s=0.5", "s=3"]


def test_a_line_is_the_mean_over_seeds_from_clean_to_the_strongest_level(drawn, tmp_path):
    draw_repair(table(3), tmp_path / "figure.png", "a title")
    curves, clean = drawn[0].axes
    assert [label.get_text() for label in curves.get_xticklabels()] == ["clean", "0.5", "3"]
    named = {line.get_label(): line for line in curves.get_lines()}
    assert list(named) == ["before", "fine-tuned", "repaired (switched)", "patched always on"]
    for line, values in zip(named.values(), CURVES.values(), strict=True):
        assert list(line.get_xdata()) == [0, 0.5, 3]
        assert list(line.get_ydata()) == pytest.approx([value + 1 for value in values])
    assert named["patched always on"].get_linewidth() < named["before"].get_linewidth()
    assert [text.get_text() for text in clean.texts] == ["94.0", "92.0", "93.9", "91.0"]


def test_bands_and_bars_are_the_deviation_over_seeds(drawn, tmp_path):
    draw_repair(table(3), tmp_path / "figure.png", "a title")
    curves, clean = drawn[0].axes
    assert len(curves.collections) == len(CURVES)
    for band, (first, *_) in zip(curves.collections, CURVES.values(), strict=True):
        edges = band.get_paths()[0].vertices
        assert sorted({y for x, y in edges if x == 0}) == pytest.approx([first, first + 2])
    bars = [group.lines[2][0].get_segments()[0] for group in clean.containers]
    assert [high - low for (_, low), (_, high) in bars] == pytest.approx([2] * len(CURVES))
    assert "3 seeds" in drawn[0].get_suptitle()


def test_one_seed_has_no_spread_and_says_so(drawn, tmp_path):
    draw_repair(table(1), tmp_path / "figure.png", "a title")
    curves, clean = drawn[0].axes
    assert not curves.collections
    assert not clean.containers
    assert not clean.collections
    assert drawn[0].get_suptitle() == "a title\none seed"


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(
    "networks", [(), ("switched",), ("pretrained", "one", "another", "a third", "a network of a long name")]
)
def test_it_is_legible(drawn, legible, tmp_path, seeds, networks):
    draw_repair(table(seeds, *networks), tmp_path / "figure.png", "ResNet-18 on CIFAR-10, 10,000 test images")
    legible(drawn[0])
    assert len({line.get_color() for line in drawn[0].axes[0].get_lines()}) == len(networks or CURVES)


def test_the_file_has_twice_800_pixels_on_white(tmp_path):
    draw_repair(table(3), tmp_path / "figure.png", "a title")
    with Image.open(tmp_path / "figure.png") as image:
        assert image.width == 1600
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_other_names_of_networks_come_last_under_their_own_names(drawn, tmp_path):
    draw_repair(table(1, "another", "pretrained"), tmp_path / "figure.png", "a title")
    assert [line.get_label() for line in drawn[0].axes[0].get_lines()] == ["before", "another"]
