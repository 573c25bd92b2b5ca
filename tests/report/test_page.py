"""The page to hand over: every number as a plain loop has it, nothing from outside, and nothing that is markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from deeppatch.data.corruption_names import BENCHMARK
from deeppatch.errors import UserError
from deeppatch.ledger import requirements, summary
from deeppatch.report import page as page_module
from deeppatch.report import page_tables
from deeppatch.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, charts_of, line_chart, nice_ticks
from deeppatch.report.judging import best, judge_network, judged_network
from deeppatch.report.limits import limits
from deeppatch.report.page import MOST_LINES, drawn_networks, page, write_report

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>|`*_'
VOID = {"meta", "link", "img", "line", "circle", "polyline", "polygon"}


class Parsed(HTMLParser):
    """The tags and attributes of a page, its text by section, and whether tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts += [data.strip()] if data.strip() else []


@pytest.fixture(scope="module")
def tidy(blur_and_grid):
    return blur_and_grid.frame(draws=50)


@pytest.fixture(scope="module")
def html(blur_and_grid, tidy, pixels):
    return page(blur_and_grid, tidy, target="switched", pictures=pixels(blur_and_grid))


def test_the_page_is_whole_and_has_every_section(html):
    assert html.startswith("<!doctype html>")
    parsed = Parsed(html)
    titles = re.findall("<h2>(.*?)</h2>", html)
    assert titles == [
        "Accuracy", "Accuracy against the strength of the degradation", "What switched gains by type and severity",
        "Where the router sends images", "Images", "Further measures", "Cost", "Limits", "How it was made",
    ]  # fmt: skip
    assert sum(tag == "img" for tag, _attributes in parsed.tags) == 20
    assert "Repair of resnet32 on cifar10" in parsed.texts


def test_nothing_comes_from_outside(html):
    for tag, attributes in Parsed(html).tags:
        assert tag not in ("script", "iframe", "object", "base")
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:"), attributes
    assert "@import" not in html
    assert not re.search(r"url\((?!data:)", html)


def test_the_verdict_is_the_one_that_compare_prints(html, blur_and_grid, tidy):
    assert str(judge_network(tidy, "switched", "pretrained")) in Parsed(html).texts


def test_without_a_name_the_verdict_is_about_the_network_that_gains_most(blur_and_grid, tidy):
    measured = [name for name in blur_and_grid.networks if (name, "mixed") in blur_and_grid.outcomes]
    right = {name: int(blur_and_grid.correct(name, "mixed").sum()) for name in measured if name != "pretrained"}
    assert best(tidy) == judged_network(blur_and_grid, tidy, None) == max(right, key=right.__getitem__)
    assert judged_network(blur_and_grid, tidy, "finetuned") == "finetuned"


def test_requirements_stand_below_the_verdict(blur_and_grid, tidy):
    numbers = summary.numbers(tidy, "switched", 4096)
    asked = [requirements.requirement(each) for each in ("bytes<=10", "clean>=-90")]
    text = page(blur_and_grid, tidy, target="switched", judgements=requirements.judge(asked, numbers))
    assert re.findall(r'<b class="(\w+)">(\w+)</b> <code>(.*?)</code>', text) == [
        ("loss", "BROKEN", "bytes&lt;=10"), ("gain", "met", "clean&gt;=-90"),
    ]  # fmt: skip


def test_accuracies_and_what_they_gain(blur_and_grid, tidy):
    table = page_tables.accuracies(blur_and_grid, page_tables.numbers_of(tidy))
    assert table.columns == ["network", "clean", "blurred", "degraded", "held out", "mixed", "repaired", "newly wrong",
                             "noise", "weather", "digital"]  # fmt: skip
    rows = dict(table.rows)

    def plain(network: str, *kinds: str) -> float:
        own = [view.name for view in blur_and_grid.views if view.kind in kinds]
        return 100 * float(np.mean([blur_and_grid.correct(network, name).mean() for name in own]))

    for column, kinds in (("clean", ["clean"]), ("blurred", ["gaussion"]), ("weather", ["fog", "snow"])):
        for network in rows:
            cell = rows[network][table.columns.index(column) - 1]
            assert cell.text == f"{plain(network, *kinds):.2f}"
            if network != "pretrained":
                gained = plain(network, *kinds) - plain("pretrained", *kinds)
                assert cell.change == page_tables.signed(gained)
            else:
                assert cell.change == ""
    assert rows["vote"][4].text == "-", "which has nothing on the mixed stream"
    switched = rows["switched"][1]
    low, high = (float(end.replace(page_tables.MINUS, "-")) for end in switched.interval.split(" to "))
    assert switched.sign == ("gain" if low > 0 else "loss" if high < 0 else "")


def test_the_heat_map_has_each_difference(blur_and_grid, tidy):
    found = page_tables.heat_map(blur_and_grid, page_tables.numbers_of(tidy), "finetuned")
    assert found.severities == [1, 3, 5]
    assert [kind for _group, kind, _cells in found.rows] == ["gaussian noise", "snow", "fog", "contrast"]
    for _group, kind, cells in found.rows:
        for severity, cell in zip((1, 3, 5), cells, strict=True):
            name = f"{kind.replace(' ', '_')}-{severity}"
            after, before = (100 * blur_and_grid.correct(each, name).mean() for each in ("finetuned", "pretrained"))
            assert cell.text == page_tables.signed(after - before, 1)
            assert cell.sign == ("gain" if after > before else "loss" if after < before else "")
            assert cell.strength == pytest.approx(min(1, abs(after - before) / page_tables.STRONGEST), abs=1e-3)


@pytest.mark.parametrize(("width", "want"), [(1, [1]), (8, [8]), (9, [5, 4]), (17, [6, 6, 5])])
def test_wide_tables_are_set_in_parts(width, want):
    names = [f"column {number}" for number in range(width)]
    cells = [page_tables.Cell(name) for name in names]
    whole = page_tables.Table(["network", *names], [("old", cells), ("new", cells)], [(name, name) for name in names])
    assert [len(part.columns) - 1 for part in whole.parts] == want
    for part in whole.parts:
        assert part.columns[0] == "network"
        for row, (name, found) in zip(("old", "new"), part.rows, strict=True):
            assert (row, part.columns[1:]) == (name, [cell.text for cell in found])
        assert [title for title, _text in part.notes] == part.columns[1:]
    assert sum((part.columns[1:] for part in whole.parts), []) == names


def test_further_tables(blur_and_grid, tidy):
    frame = pd.DataFrame({"method": ["tent", "<i>bn</i>"], "accuracy": [61.234, np.nan], "past": [True, False]})
    text = page(blur_and_grid, tidy, further={"Adaptation": ("On streams.", frame)})
    section = text.partition("<h2>Adaptation</h2>")[2].partition("</section>")[0]
    assert Parsed(section).texts == [
        "On streams.", "method", "accuracy", "past", "tent", "61.23", "yes", "<i>bn</i>", "-", "no",
    ]  # fmt: skip


def test_what_was_not_measured_is_not_there(hostile, pixels):
    text = page(hostile)
    assert "by type and severity" not in text, "one type of the grid is no grid"
    assert "<img" not in text
    assert "Where the router sends images" in text


def test_charts_show_the_accuracies(blur_and_grid, tidy):
    numbers = {key[:3]: value for key, value in page_tables.numbers_of(tidy).items() if key[3] == "accuracy"}
    charts = charts_of(blur_and_grid, numbers, ["pretrained", "switched"])
    assert [chart.title for chart in charts] == ["Published blur", "gaussian noise", "fog", "snow", "contrast"]
    fog = next(chart for chart in charts if chart.title == "fog")
    assert [label for _x, label in fog.x_ticks] == ["clean", "1", "3", "5"]
    (bottom, lowest), (top, highest) = fog.y_ticks[0], fog.y_ticks[-1]
    for line in fog.lines:
        names = ["clean", "fog-1", "fog-3", "fog-5"]
        assert line.points == " ".join(f"{x},{y}" for x, y in line.markers)
        for (x, y), name, (tick, _label) in zip(line.markers, names, fog.x_ticks, strict=True):
            share = (y - bottom) / (top - bottom)
            value = float(lowest) + share * (float(highest) - float(lowest))
            assert value == pytest.approx(100 * blur_and_grid.correct(line.name, name).mean(), abs=0.05)
            assert x == tick


def test_of_many_types_the_means_of_groups_are_drawn(ledger_of):
    ledger = ledger_of([(kind, severity) for kind in BENCHMARK for severity in (1, 2)], ("old", "new"))
    numbers = {key[:3]: value for key, value in page_tables.numbers_of(ledger.frame(draws=2)).items()
               if key[3] == "accuracy"}  # fmt: skip
    charts = charts_of(ledger, numbers, ["old", "new"])
    assert [chart.title.partition(":")[0] for chart in charts] == ["Noise", "Blur", "Weather", "Digital"]


@pytest.mark.parametrize(("low", "high"), [(0, 100), (61.2, 93.7), (90, 90), (99.7, 100), (0.1, 3), (33, 34)])
def test_ticks_enclose_what_is_drawn(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low <= high <= ticks[-1]
    assert 2 <= len(ticks) <= 7
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])
    assert ticks[0] >= 0


def test_a_chart_stays_in_its_box():
    chart = line_chart("t", "x", ["clean", "1", "2"], {"one": [(0, 0, 3), (100, 97, 100), (50, 40, 60)]})
    for line in chart.lines:
        for x, y in [*line.markers, *(tuple(map(float, pair.split(","))) for pair in line.band.split())]:
            assert 0 < LEFT <= x <= RIGHT < WIDTH
            assert 0 < TOP <= y <= BOTTOM < HEIGHT


def test_of_many_networks_charts_show_the_judged_one_and_the_best(blur_and_grid, monkeypatch):
    assert len(blur_and_grid.networks) <= MOST_LINES
    monkeypatch.setattr(page_module, "MOST_LINES", 3)
    numbers = {("finetuned", "degraded", 0, "change"): (1.0, 0, 2), ("vote", "degraded", 0, "change"): (3.0, 2, 4)}
    assert drawn_networks(blur_and_grid, numbers, "switched") == ["pretrained", "switched", "vote"]


def test_what_users_write_is_text_and_nothing_else(hostile, pixels):
    text = page(hostile, pictures=pixels(hostile))
    parsed = Parsed(text)
    assert "alert(1)" in text
    assert [tag for tag, _attributes in parsed.tags if tag in ("script", "b")].count("script") == 0
    for tag, attributes in parsed.tags:
        assert not [name for name in attributes if name.startswith("on")], attributes
        assert tag != "img" or attributes["src"].startswith("data:image/")
    assert any(HOSTILE in each for each in parsed.texts)
    assert "<b>owl" not in text


def test_the_same_ledger_gives_the_same_page(blur_and_grid, tidy, pixels, html):
    again = page(blur_and_grid, tidy, target="switched", pictures=pixels(blur_and_grid))
    assert again == html
    assert page(blur_and_grid, tidy, target="switched", pictures=pixels(blur_and_grid), seed=1) != html


def test_files_for_python_users(blur_and_grid, tmp_path):
    html, card = write_report(blur_and_grid, tmp_path / "new", target="finetuned")
    assert "<title>Repair of resnet32" in html.read_text()
    assert "# finetuned" in card.read_text()
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"report.html", "model-card.md"}


def test_a_network_that_is_not_there(blur_and_grid, tidy):
    with pytest.raises(UserError, match="target='nobody': there are the networks finetuned, vote, switched"):
        page(blur_and_grid, tidy, target="nobody")


def test_limits_say_what_was_not_shown(blur_and_grid, hostile):
    found = " ".join(limits(blur_and_grid, "switched", chosen_here=False))
    assert "60 test images" in found
    assert "vote: answers depend on the other images of a batch" in found
    assert "Nothing was trained or calibrated on snow" in found
    assert "val was seen" in found
    assert "--gate" not in found
    assert "--gate" in " ".join(limits(blur_and_grid, "switched", chosen_here=True))
    assert "No type was held out" in " ".join(limits(hostile, "x", chosen_here=True))
