"""The tidy table of a ledger: every row as its plain definition has it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from deeppatch import metrics
from deeppatch.cli.compare.report import definitions
from deeppatch.data.corruption_names import BENCHMARK
from deeppatch.ledger import summary
from deeppatch.ledger.ledger import Ledger
from deeppatch.ledger.pools import pools
from deeppatch.ledger.records import LedgerView, Network, Outcomes
from deeppatch.ledger.streams import group_of
from deeppatch.report import ledger_json
from deeppatch.report.page_tables import further_measures, numbers_of

IMAGES, CLASSES = 40, 3
LEVELS = [("gaussion", 1), ("gaussion", 2), *((kind, severity) for kind in BENCHMARK for severity in (1, 5))]


def view(kind: str, severity: int, *, held_out: bool = False, order: np.ndarray | None = None) -> LedgerView:
    numbers = np.arange(IMAGES) if order is None else order
    name = kind if kind in ("clean", "mixed") else f"{kind}-{severity}"
    return LedgerView(name, kind, severity, group_of(kind), held_out, numbers % CLASSES, numbers)


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    """Three networks of random answers on all views; the third has nothing on the mixed stream."""
    draw = np.random.default_rng(3)
    views = [view("clean", 0), *(view(kind, severity, held_out=kind == "snow") for kind, severity in LEVELS)]
    views.append(view("mixed", 0, order=draw.permutation(IMAGES)))
    outcomes = {}
    for index, name in enumerate(("old", "new", "vote")):
        for each in views[: None if name != "vote" else -1]:
            right = draw.random(IMAGES) < 0.5 + 0.1 * index
            sure = draw.uniform(1 / 3, 1, IMAGES)
            prediction = np.where(right, each.labels, (each.labels + 1) % CLASSES)
            outcomes[name, each.name] = Outcomes(prediction, sure, np.log(sure), (1 - sure) ** 2)
    networks = {name: Network(name, name, bytes=100) for name in ("old", "new", "vote")}
    return Ledger("old", networks, tuple(views), outcomes, tuple("abc"))


@pytest.fixture(scope="module")
def tidy(ledger):
    return ledger.frame(draws=400)


def value(tidy, network, name, measure, severity=0):
    rows = tidy[(tidy.network == network) & (tidy["view"] == name) & (tidy.severity == severity)
                & (tidy.measure == measure)]  # fmt: skip
    assert len(rows) == 1, (network, name, measure, len(rows))
    return rows.iloc[0]


def test_what_means_there_are(ledger):
    found = {(pool.name, pool.severity): pool.views for pool in pools(ledger.views)}
    assert found["blurred", 0] == found["gaussion", 0] == ("gaussion-1", "gaussion-2")
    assert found["noise", 0] == tuple(f"{kind}-{s}" for kind in BENCHMARK[:3] for s in (1, 5))
    assert len(found["all", 0]) == 30
    assert len(found["degraded", 0]) == 30, "the two of blur, the 30 of the 15, without the two that are held out"
    assert found["held out", 0] == ("snow-1", "snow-5")
    assert found["fog", 5] == ("fog-5",)
    assert ("extra", 0) not in found
    short = [each for each in ledger.views if each.kind != "fog"]
    assert "all" not in {pool.name for pool in pools(short)}, "the mean of 15 is of 15"


@pytest.mark.parametrize("name", ["clean", "mixed", "blurred", "weather", "all", "degraded", "held out", "fog"])
def test_estimates_are_means_over_views(ledger, tidy, name):
    pool = next(pool for pool in pools(ledger.views) if (pool.name, pool.severity) == (name, 0))
    now, was = ([ledger.correct(network, each) for each in pool.views] for network in ("new", "old"))
    accuracy, before = (100 * np.mean([row.mean() for row in rows]) for rows in (now, was))
    repair = 100 * np.mean([(a & ~b).mean() for a, b in zip(now, was, strict=True)])
    broken = 100 * np.mean([(b & ~a).mean() for a, b in zip(now, was, strict=True)])
    want = {"accuracy": accuracy, "change": accuracy - before, "repair": repair, "break": broken,
            "repair_rate": 100 * repair / (100 - before), "backward_trust": 100 * (1 - broken / before)}  # fmt: skip
    for measure, number in want.items():
        row = value(tidy, "new", name, measure)
        assert row.estimate == pytest.approx(number, abs=1e-3)
        assert row.low <= row.estimate <= row.high
        assert row.high - row.low < 60
        assert row.n == IMAGES
    assert not len(tidy[(tidy.network == "old") & (tidy.measure != "accuracy") & tidy.measure.isin(want)])


def test_intervals_of_a_mean_are_narrower_than_those_of_a_view(tidy):
    def width(name, severity=0):
        row = value(tidy, "new", name, "change", severity)
        return row.high - row.low

    assert width("all") < width("fog") < width("fog", 5)


def test_corruption_errors_are_relative_to_the_base(ledger, tidy):
    ratios = []
    for kind in BENCHMARK:
        errors = [sum(1 - ledger.correct(name, f"{kind}-{s}").mean() for s in (1, 5)) for name in ("new", "old")]
        ratios.append(100 * errors[0] / errors[1])
        assert value(tidy, "new", kind, "corruption_error").estimate == pytest.approx(ratios[-1], abs=1e-3)
    assert value(tidy, "new", "all", "mean_corruption_error").estimate == pytest.approx(
        100 - value(tidy, "new", "all", "accuracy").estimate
    )
    row = value(tidy, "new", "all", "mce")
    assert row.estimate == pytest.approx(np.mean(ratios), abs=1e-3)
    assert row.low < row.estimate < row.high
    assert math.isfinite(value(tidy, "new", "all", "relative_mce").estimate)


def test_types_without_errors_of_the_base_are_left_out_of_mce_and_named(ledger):
    outcomes = dict(ledger.outcomes)
    for each in ledger.views:
        if each.kind == "fog":
            outcomes["old", each.name] = replace(outcomes["old", each.name], prediction=each.labels)
    changed = replace(ledger, outcomes=outcomes)
    tidy = changed.frame(draws=50)
    ratios = [value(tidy, "new", kind, "corruption_error").estimate for kind in BENCHMARK if kind != "fog"]
    assert value(tidy, "new", "all", "mce").estimate == pytest.approx(np.mean(ratios), abs=1e-3)
    left = ledger_json.contents(changed, tidy)
    assert left["networks"]["new"]["corruptions_mce"] == pytest.approx(np.mean(ratios), abs=1e-3)
    assert left["left_out"]["mce"] == ("fog",)
    clean = summary.accuracies(tidy, "old")["clean"]
    assert left["left_out"]["relative_mce"] == tuple(
        kind for kind in BENCHMARK if value(tidy, "old", kind, "accuracy").estimate >= clean - 1e-9
    )
    assert "left out of mCE here: fog" in definitions(tidy, "old")
    notes = dict(further_measures(changed, numbers_of(tidy)).notes)
    assert notes["mCE (base old)"].endswith("Left out here: fog.")
    assert not summary.left_out({name: 50.0 for name in (*BENCHMARK, "clean")}), "mCE is of all 15 types only"


def test_calibration_and_classes_of_clean_images(ledger, tidy):
    own = ledger.outcomes["new", "clean"]
    correct = ledger.correct("new", "clean")
    row = value(tidy, "new", "clean", "ece")
    assert row.estimate == pytest.approx(metrics.calibration_error(own.confidence, correct).ece)
    assert row.high > row.low
    assert math.isnan(value(tidy, "new", "fog", "ece", 5).low), "a single level has no interval"
    assert value(tidy, "new", "clean", "nll").estimate == pytest.approx(-own.log_likelihood.mean())
    assert value(tidy, "new", "clean", "brier").estimate == pytest.approx(own.brier.mean())
    labels = ledger.view("clean").labels
    worst = min(100 * correct[labels == label].mean() for label in range(CLASSES))
    assert value(tidy, "new", "clean", "worst_class").estimate == pytest.approx(worst)


def test_p_values_are_adjusted_for_the_number_of_methods(ledger, tidy):
    plain = {name: value(tidy, name, "clean", "mcnemar_p").estimate for name in ("new", "vote")}
    before = ledger.correct("old", "clean")
    for name, p in plain.items():
        now = ledger.correct(name, "clean")
        assert p == metrics.mcnemar(int((now & ~before).sum()), int((before & ~now).sum()), IMAGES).p
    assert {name: value(tidy, name, "clean", "holm_p").estimate for name in plain} == metrics.holm(plain)


def test_a_network_without_a_view_has_no_row_there(tidy):
    assert not len(tidy[(tidy.network == "vote") & (tidy["view"] == "mixed")])
    assert len(tidy[(tidy.network == "vote") & (tidy["view"] == "degraded")])


def test_where_nothing_has_changed_the_interval_is_not_empty(ledger):
    """A bootstrap over images of which none has changed would be sure that there is no loss."""
    same = {("old", each.name): ledger.outcomes["old", each.name] for each in ledger.views}
    same |= {("again", name): each for (_old, name), each in same.items()}
    found = summary.frame("old", ["old", "again"], ledger.views, same, classes=3, draws=50)
    for name in ("clean", "blurred", "all"):
        row = value(found, "again", name, "change")
        assert row.estimate == 0
        assert row.low < -1
        assert row.high > 1


def test_the_table_has_a_row_for_each_network(ledger):
    table = ledger.table()
    assert list(table.columns) == ["clean", "blurred", "noise", "blur", "weather", "digital", "all", "held out",
                                   "mixed", "repaired", "newly wrong"]  # fmt: skip
    assert list(table.index) == ["old", "new", "vote"]
    stream = [ledger.correct(name, "mixed") for name in ("new", "old")]
    assert table.loc["new", "repaired"] == pytest.approx(100 * (stream[0] & ~stream[1]).mean())
    assert table.loc["new", "newly wrong"] == pytest.approx(100 * (stream[1] & ~stream[0]).mean())


def test_types_are_columns_where_there_is_no_group():
    assert summary.columns_of(["clean", "degraded", "mixed", "rain", "mud"]) == ["clean", "rain", "mud", "mixed"]


def test_numbers_of_a_requirement(ledger, tidy):
    found = summary.numbers(tidy, "new", 100)
    row = value(tidy, "new", "fog", "change", 5)
    assert found["fog", 5] == (row.estimate, row.low, row.high)
    assert found["flips", 0][0] == value(tidy, "new", "mixed", "break").estimate
    assert found["bytes", 0] == (100.0, 100.0, 100.0)
    assert ("flips", 0) not in summary.numbers(tidy, "vote", 100)


def test_networks_that_differ_by_seed_have_a_row_for_their_mean(ledger):
    facts = {"variant": "abc"}
    networks = {"old": ledger.networks["old"]}
    networks |= {name: Network(name, name, method="finetune", seed=seed, facts=facts) for seed, name in
                 enumerate(("new", "vote"))}  # fmt: skip
    of_seeds = replace(ledger, networks=networks)
    assert of_seeds.seeds() == {"finetune (mean of 2 seeds)": ("new", "vote")}
    tidy = of_seeds.frame(draws=400)
    for name in ("clean", "all", "fog"):
        for measure in ("accuracy", "change", "repair", "break"):
            both = [value(tidy, network, name, measure) for network in ("new", "vote")]
            row = value(tidy, "finetune (mean of 2 seeds)", name, measure)
            assert row.estimate == pytest.approx(np.mean([each.estimate for each in both]), abs=1e-3)
            assert row.low <= row.estimate <= row.high
    wide, narrow = (value(tidy, name, "all", "change") for name in ("finetune (mean of 2 seeds)", "new"))
    assert wide.high - wide.low > narrow.high - narrow.low, "the seeds differ by more than the images"
    assert "mixed" not in set(tidy[tidy.network == "finetune (mean of 2 seeds)"]["view"]), "one of them has none"
    assert ledger.seeds() == {}
    twice = {**networks, "vote": replace(networks["vote"], seed=0)}
    assert replace(ledger, networks=twice).seeds() == {}, "two runs of one seed"
    other = {**networks, "more": replace(networks["new"], facts={"variant": "xyz", "filter_seed": 1})}
    other["again"] = replace(other["more"], facts={"variant": "xyz", "filter_seed": 2})
    assert set(replace(ledger, networks=other).seeds()) == {
        "finetune abc (mean of 2 seeds)", "finetune xyz (mean of 2 seeds)",
    }  # fmt: skip


def test_images_that_a_router_was_calibrated_on_are_left_out_of_every_view(ledger):
    used = np.array([0, 3, 39])
    left = ledger.without(used)
    for name in ("clean", "fog-5", "mixed"):
        kept = [row for row, image in enumerate(ledger.view(name).image) if image not in used]
        assert list(left.view(name).image) == [ledger.view(name).image[row] for row in kept]
        assert list(left.correct("new", name)) == [ledger.correct("new", name)[row] for row in kept]
        assert len(left.outcomes["new", name]) == len(left.view(name)) == IMAGES - 3
    assert set(left.frame(draws=5).n) == {IMAGES - 3}
