"""Ranges, joins and the metrics of a class, by hand and against plain definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from deeppatch.errors import UserError
from deeppatch.metrics import accuracy
from deeppatch.modular import joins
from deeppatch.modular.join_names import parse
from deeppatch.modular.joins import JoinData, Range

LOGITS = torch.tensor([[0.5, 0.3, 0.2]]).log()  # of a weak model; the target is the last class


@pytest.fixture
def scores() -> torch.Tensor:
    """A module's logits for 41 images of its class."""
    return 5 + 3 * torch.randn(41, generator=torch.Generator().manual_seed(4))


# --- ranges


def test_every_range_is_the_published_one(scores):
    values = scores.double().numpy()
    low, high = np.percentile(values, [25, 75])
    want = {
        "min_max": (values.min(), values.max()),
        "percentile": tuple(np.percentile(values, [10, 90])),
        "percentile:5,97.5": tuple(np.percentile(values, [5, 97.5])),
        "outlier": (low - 1.5 * (high - low), high + 1.5 * (high - low)),
        "norm": (values.mean(), values.mean() + values.std()),
    }
    assert {name.partition(":")[0] for name in want} == joins.RANGES.keys()
    for name, ends in want.items():
        found = joins.fit_range(name, scores)
        assert (found.low, found.high) == pytest.approx(ends, rel=1e-12), name


def test_a_range_does_not_clip(scores):
    assert Range(2, 6)(torch.tensor([2.0, 6, 4, 0, 10])).tolist() == [0, 1, 0.5, -0.5, 2]
    z_scores = joins.fit_range("norm", scores)(scores.double())
    assert z_scores.mean().item() == pytest.approx(0, abs=1e-12)
    assert z_scores.std(correction=0).item() == pytest.approx(1)


@pytest.mark.parametrize("join", joins.RANGES)
def test_a_range_without_width_does_not_divide_by_zero(join):
    """One image, or one answer to all: lower scores are no, others yes."""
    span = joins.fit_range(join, torch.full((3,), 4.0))
    assert span(torch.tensor([3.9, 4.0, 4.1])).tolist() == [0, 1, 1]


def test_one_outlier_stretches_min_max_alone(scores):
    """The fault of the one published join (specification, 7.1, 15): so others are reported beside it."""
    usual = {name: joins.fit_range(name, scores) for name in joins.RANGES}
    for stray in (-500.0, 500.0):
        stretched = {name: joins.fit_range(name, torch.cat([scores, torch.tensor([stray])])) for name in joins.RANGES}
        width = {
            name: (each.high - each.low) / (usual[name].high - usual[name].low) for name, each in stretched.items()
        }
        assert width["min_max"] > 30
        assert 0.5 < width["percentile"] < 2
        assert 0.5 < width["outlier"] < 2


@pytest.mark.parametrize("join", ["minmax", "", "percentile:", "percentile:10", "percentile:90,10", "percentile:a,b",
                                  "percentile:0,101", "norm:1,2", "percentile:1,2,3", "percentile:5,5",
                                  "percentile:nan,90"])  # fmt: skip
def test_what_is_no_join_is_refused_in_one_line(join):
    with pytest.raises(UserError) as error:
        parse(join)
    assert str(error.value).startswith(f"join {join}: ")
    assert "\n" not in str(error.value)


# --- the join


@pytest.mark.parametrize(("confidence", "winner"), [(0.4, 0), (0.6, 2), (-3.0, 0), (0.5000001, 2), (7.0, 2)])
def test_the_target_wins_where_its_module_is_surer_than_the_weak_model_of_any_other(confidence, winner):
    answer = joins.join_scores(LOGITS, torch.tensor([confidence]))
    torch.testing.assert_close(answer, torch.tensor([[0.5, 0.3, confidence]]))
    assert answer.argmax(1).item() == winner


def test_the_weak_model_s_own_answer_for_the_target_is_dropped():
    """Even where it is nearly sure of it; the probabilities of the others stay what they were."""
    sure = torch.tensor([[0.02, 0.03, 0.95]]).log()
    torch.testing.assert_close(joins.join_scores(sure, torch.tensor([0.01])), torch.tensor([[0.02, 0.03, 0.01]]))
    assert joins.join_scores(sure, torch.tensor([0.01])).argmax(1).item() == 1


# --- the metrics of a class


def plain(predictions: list[int], labels: list[int], target: int) -> tuple[float, ...]:
    """The definition, image by image."""
    pairs = list(zip(predictions, labels, strict=True))
    tp = sum(p == target and t == target for p, t in pairs)
    fp = sum(p == target and t != target for p, t in pairs)
    fn = sum(p != target and t == target for p, t in pairs)
    others = [p == t for p, t in pairs if t != target]
    precision = tp / (tp + fp) if tp + fp else 0
    recall = tp / (tp + fn) if tp + fn else 0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0
    return precision, recall, f1, sum(others) / len(others) if others else 0


def test_class_metrics_is_the_definition_for_all_answers_to_four_images():
    for labels in ([0, 1, 2, 2], [2, 2, 2, 2], [0, 1, 1, 0]):
        for predictions in itertools.product(range(3), repeat=4):
            found = joins.class_metrics(torch.tensor(predictions), torch.tensor(labels), 2)
            assert tuple(found.values()) == pytest.approx(plain(list(predictions), labels, 2), abs=1e-12)
            assert all(math.isfinite(value) for value in found.values())


def test_class_metrics_counts_all_images_once_whatever_the_batches():
    """Four of four and none of two are four of six (specification, 7.1, 4)."""
    found = joins.class_metrics(torch.tensor([0, 0, 0, 0, 1, 1]), torch.zeros(6, dtype=torch.long), 2)
    assert found["others_accuracy"] == pytest.approx(4 / 6)


def test_empty_denominators_give_zero():
    labels, nobody = torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0])
    assert joins.class_metrics(nobody, labels, 2) == {
        "precision": 0, "recall": 0, "f1": 0, "others_accuracy": pytest.approx(2 / 3)
    }  # fmt: skip
    assert joins.class_metrics(torch.tensor([2, 2]), torch.tensor([2, 2]), 2)["others_accuracy"] == 0


def test_a_prediction_of_the_target_is_an_error_of_the_others():
    found = joins.class_metrics(torch.tensor([2, 0, 2]), torch.tensor([0, 0, 2]), 2)
    assert found["others_accuracy"] == 0.5
    assert found["precision"] == 0.5


def test_means_are_over_rows():
    assert joins.mean_of_rows([{"f1": 0.2, "recall": 1.0}, {"f1": 0.4, "recall": 0.0}]) == pytest.approx(
        {"f1": 0.3, "recall": 0.5}
    )


# --- calibration


def answers(count: int, seed: int) -> JoinData:
    """A weak model that tells two classes apart and never says the third; a module whose scores lie far from [0, 1]."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    logits = torch.randn(count, 3, generator=draw) + 4 * torch.eye(3)[labels] * torch.tensor([1.0, 1.0, 0.0])
    scores = 300 + 20 * (labels == 2) + 4 * torch.randn(count, generator=draw)
    return JoinData(logits, scores, labels)


def test_a_calibrated_join_learns_where_the_module_s_scores_lie():
    train, val, test = answers(600, 1), answers(150, 2), answers(300, 3)
    before = accuracy(test.logits.argmax(1), test.labels)
    join = joins.calibrate(train, val, 2021)
    after = accuracy(join(test.inputs).argmax(1), test.labels)
    assert before < 0.85
    assert after > 0.95
    assert join.linear.weight.shape == (3, 3)


def test_a_calibrated_join_does_not_read_the_weak_model_s_answer_for_the_target():
    one = answers(50, 1)
    other = JoinData(one.logits + torch.tensor([0.0, 0.0, 9.0]), one.scores, one.labels)
    assert torch.equal(one.inputs, other.inputs)
    assert torch.equal(one.inputs[:, :2], one.logits[:, :2])
    assert torch.equal(one.inputs[:, 2], one.scores)


def test_calibration_depends_on_its_seed_and_on_nothing_drawn_before():
    train, val = answers(200, 1), answers(60, 2)

    def made(seed: int) -> list[float]:
        torch.rand(7)
        return joins.calibrate(train, val, seed).linear.weight.flatten().tolist()

    assert made(1) == made(1) != made(2)


def test_a_constant_input_does_no_harm():
    train = answers(60, 1)
    train.scores.fill_(3)
    assert joins.calibrate(train, train, 1)(train.inputs).isfinite().all()
