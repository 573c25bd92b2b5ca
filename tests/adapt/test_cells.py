"""Answers on streams that are kept: they are those of `run_streams`, and nothing is measured twice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from deeppatch.adapt import cells
from deeppatch.adapt.batch_statistics import choose_prior_count
from deeppatch.adapt.cotta import CottaSettings
from deeppatch.adapt.measure import run_streams
from deeppatch.adapt.names import METHODS
from deeppatch.adapt.tent import TentSettings
from deeppatch.cache import ContentCache
from deeppatch.data.corruptions import GaussianBlur
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.errors import UserError

BLUR = GaussianBlur((1.0, 2.0))
FEW = {"batch_size": 8, "per_corruption": 16, "single": 3, "seed": 3}


@pytest.fixture
def data() -> Data:
    draw = torch.Generator().manual_seed(2)
    images = Images(torch.randint(0, 256, (24, 3, 8, 8), generator=draw, dtype=torch.uint8), torch.arange(24) % 4)
    return Data(train=images, val=images, test=images, classes=("a", "b", "c", "d"))


@pytest.fixture
def measured(monkeypatch):
    """The rows and streams that are measured."""
    seen = []

    def counted(*given, **options):
        seen.extend((row, name) for name in options["streams"] for row in [*options["networks"], *options["methods"]])
        return run_streams(*given, **options)

    monkeypatch.setattr(cells, "run_streams", counted)
    return seen


def same(one, other) -> bool:
    def facts(answers):
        return {name: value for name, value in vars(answers).items() if name != "correct"}

    return list(one.answers) == list(other.answers) and all(
        np.array_equal(each.correct, other.answers[key].correct) and facts(each) == facts(other.answers[key])
        for key, each in one.answers.items()
    )


def test_answers_are_those_of_one_run_and_are_measured_once(shared_model, data, tmp_path, measured):
    kept = ContentCache(tmp_path)
    networks = {"fixed": nn.Sequential(nn.Flatten(), nn.Linear(192, 4))}
    options = {**FEW, "methods": METHODS, "streams": ["mixed", "single"], "networks": networks,
               "settings": {"cotta": CottaSettings(views=2)}}  # fmt: skip
    whole = run_streams(shared_model, data, BLUR, **options)
    for _again in range(2):
        found = cells.cached_streams(shared_model, data, BLUR, kept, **options)
        assert same(found, whole)
        assert found.by_stream().equals(whole.by_stream())
        assert found.by_type().equals(whole.by_type())
        assert np.array_equal(found.image, whole.image)
        assert np.array_equal(found.single_image, whole.single_image)
        assert measured == list(whole.answers)
    assert found.answers["roid", "single"].correct is None


@pytest.mark.parametrize(
    ("changed", "new"),
    [
        ({"methods": ["tent", "bn-1"]}, [("bn-1", "mixed")]),
        ({"streams": ["mixed", "reset"]}, [("fixed", "reset"), ("tent", "reset")]),
        ({"settings": {"tent": TentSettings(lr=0.1)}}, [("tent", "mixed")]),
        ({"networks": {"another": nn.Sequential(nn.Flatten(), nn.Linear(192, 4))}}, [("another", "mixed")]),
        ({"batch_size": 4}, [("fixed", "mixed"), ("tent", "mixed")]),
        ({"seed": 4}, [("fixed", "mixed"), ("tent", "mixed")]),
        ({"per_corruption": 12}, [("fixed", "mixed"), ("tent", "mixed")]),
        ({"reference": "tent"}, []),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
def test_what_is_new_is_measured(changed, new, shared_model, data, tmp_path, measured):
    options = {**FEW, "methods": ["tent"], "streams": ["mixed"],
               "networks": {"fixed": nn.Sequential(nn.Flatten(), nn.Linear(192, 4))}}  # fmt: skip
    cells.cached_streams(shared_model, data, BLUR, ContentCache(tmp_path), **options)
    measured.clear()
    cells.cached_streams(shared_model, data, BLUR, ContentCache(tmp_path), **{**options, **changed})
    assert measured == new


def test_another_degradation_and_another_network_are_new(shared_model, model, data, tmp_path, measured):
    options = {**FEW, "methods": ["bn-1"], "streams": ["mixed"]}
    for network, blur in ((shared_model, BLUR), (shared_model, GaussianBlur((1.0, 2.5))), (model, BLUR)):
        with torch.no_grad():
            next(model.parameters()).mul_(2)
        cells.cached_streams(network, data, blur, ContentCache(tmp_path), **options)
    assert len(measured) == 3


def test_a_network_with_the_name_of_a_method_is_refused(shared_model, data, tmp_path):
    with pytest.raises(UserError, match="tent: networks have other names than methods"):
        cells.cached_streams(shared_model, data, BLUR, ContentCache(tmp_path), networks={"tent": shared_model})


def test_the_prior_count_is_chosen_once(shared_model, data, tmp_path, monkeypatch):
    kept, options = ContentCache(tmp_path), {"batch_size": 8, "seed": 3}
    found = cells.cached_prior_count(shared_model, data.val, BLUR, kept, **options)
    assert found.count == choose_prior_count(shared_model, data.val, BLUR, **options)
    monkeypatch.setattr(cells, "choose_prior_count", None)  # which would fail
    assert cells.cached_prior_count(shared_model, data.val, BLUR, kept, **options) == found


def test_ranks_share_the_streams(shared_model, data, tmp_path, measured, monkeypatch):
    options = {**FEW, "methods": ["bn-1"], "streams": ["reset", "mixed", "single"]}
    whole = run_streams(shared_model, data, BLUR, **options)
    monkeypatch.setattr(cells.ranks, "all_gather", lambda own: [own, whole.answers])
    monkeypatch.setattr(cells.runtime, "ranks", lambda: 2)
    monkeypatch.setattr(cells.ranks, "broadcast_from_rank0", lambda call: call())
    shares = []
    for rank in (0, 1):
        monkeypatch.setattr(cells.runtime, "rank", lambda rank=rank: rank)
        assert same(
            cells.cached_streams(shared_model, data, BLUR, ContentCache(tmp_path / str(rank)), **options), whole
        )
        shares.append([name for _row, name in measured])
        measured.clear()
    assert shares == [["reset", "single"], ["mixed"]]
