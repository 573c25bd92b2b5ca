"""Streams that methods and fixed networks go through, and the tables of it."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from torch import nn

from deeppatch import metrics
from deeppatch.adapt.cotta import CottaSettings
from deeppatch.adapt.measure import run_streams
from deeppatch.adapt.methods import adapter
from deeppatch.adapt.names import METHODS, STREAMS
from deeppatch.adapt.results import joined
from deeppatch.adapt.roid import Roid, RoidSettings
from deeppatch.adapt.tent import TentSettings
from deeppatch.data.corruptions import GaussianBlur
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images, to_float
from deeppatch.data.streams import stream
from deeppatch.errors import UserError

BLUR = GaussianBlur((1.0, 2.0))


class Voting(nn.Module):
    """Answers every image of a batch alike, so that an answer depends on neighbours."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels):
        return self.model(pixels).mean(0, keepdim=True).expand(len(pixels), -1)


@pytest.fixture(scope="module")
def data(shared_model) -> Data:
    """Return random images, labelled by the network itself but for a third."""
    draw = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (120, 3, 8, 8), generator=draw, dtype=torch.uint8)
    with torch.no_grad():
        labels = shared_model(to_float(pixels)).argmax(1)
    labels[::3] = torch.arange(40) % 4
    images = Images(pixels, labels)
    return Data(train=images, val=images, test=images, classes=("a", "b", "c", "d"))


def run(model, data, **options):
    options = {"batch_size": 40, "per_corruption": 100, "single": 10, "seed": 3} | options
    return run_streams(model, data, BLUR, **options)


@pytest.fixture(scope="module")
def everything(shared_model, data):
    networks = {"voting": Voting(shared_model), "tuned": copy.deepcopy(shared_model)}
    return run(shared_model, data, networks=networks, settings={"cotta": CottaSettings(views=2)})


def test_every_row_answers_every_stream(everything, data):
    table = everything.by_stream()
    assert table.groupby("stream", sort=False)["method"].apply(list).to_dict() == {
        name: ["voting", "tuned", *METHODS] for name in STREAMS
    }
    defined = table[table["note"] == ""]
    assert set(defined["n"]) == {200, 20}
    (undefined,) = table[table["note"] != ""].to_dict("records")
    assert (undefined["method"], undefined["stream"]) == ("roid", "single")
    assert np.isnan(undefined["accuracy"])
    assert everything.reference == "voting"
    assert everything.levels == BLUR.level_names
    counts = np.bincount(data.test.labels[everything.image], minlength=4)
    whole = np.bincount(data.test.labels, minlength=4)
    assert np.abs(counts / 100 - whole / 120).max() < 0.02, "class-stratified"
    assert set(everything.single_image) < set(everything.image)


def test_tables_are_functions_of_the_answers(everything):
    by_type, by_stream = everything.by_type(), everything.by_stream()
    assert len(by_type) == 2 * (5 * 14 - 1)
    for (method, name), answers in everything.answers.items():
        if answers.correct is None:
            continue
        own = by_type[(by_type["method"] == method) & (by_type["stream"] == name)]
        assert own["accuracy"].tolist() == pytest.approx((100 * answers.correct.mean(1)).tolist())
        row = by_stream[(by_stream["method"] == method) & (by_stream["stream"] == name)].iloc[0]
        assert row["accuracy"] == pytest.approx(own["accuracy"].mean())
        if method == "voting":
            assert row[["difference", "low", "high"]].isna().all(), "the reference itself"
            continue
        before = everything.answers["voting", name].correct
        found = metrics.paired_difference(torch.from_numpy(answers.correct), torch.from_numpy(before))
        assert [row["difference"], row["low"], row["high"]] == pytest.approx(
            [100 * found.estimate, 100 * found.low, 100 * found.high]
        )


def test_answers_stand_at_their_image_and_level(model, data, everything):
    images = data.test.take(torch.from_numpy(everything.image))
    with torch.no_grad():
        expected = [model(BLUR(to_float(images.pixels), level)).argmax(1) == images.labels for level in (1, 2)]
    for name in ("reset", "continual", "mixed", "ordered"):
        for row in ("source", "tuned"):
            assert np.array_equal(everything.answers[row, name].correct, torch.stack(expected).numpy())
    place = np.searchsorted(everything.image, everything.single_image)
    assert np.array_equal(everything.answers["source", "single"].correct, torch.stack(expected).numpy()[:, place])


@pytest.mark.parametrize("name", ["reset", "continual"])
def test_a_stream_starts_anew_or_goes_on(name, model, data):
    settings = TentSettings(lr=0.1)
    found = run(model, data, methods=["tent"], streams=[name], settings={"tent": settings})
    tent = adapter("tent", model, settings)
    images = data.test.take(torch.from_numpy(found.image))
    correct = np.zeros((2, 100), dtype=bool)
    for row, part in enumerate(stream(name, images, BLUR, batch_size=40, seed=3).parts):
        if name == "reset":
            tent.reset()
        answers = [tent.predict(pixels).argmax(1) == labels for pixels, labels in part]
        correct[row, part.index.numpy()] = torch.cat(answers).numpy()
    assert np.array_equal(found.answers["tent", name].correct, correct)
    other = run(model, data, methods=["tent"], streams=["mixed"], settings={"tent": settings})
    assert not np.array_equal(other.answers["tent", "mixed"].correct, correct)


def test_clean_accuracy_afterwards_is_that_of_the_adapted_network(model, data):
    options = {"methods": ["source", "tent"], "streams": ["continual"]}
    still = run(model, data, **options, settings={"tent": TentSettings(lr=0.0)})
    images = data.test.take(torch.from_numpy(still.image))
    with torch.no_grad():
        expected = metrics.accuracy(model(to_float(images.pixels)).argmax(1), images.labels)
    assert still.answers["source", "continual"].clean == [pytest.approx(expected)]
    moved = run(model, data, **options, settings={"tent": TentSettings(lr=0.5)})
    assert moved.answers["tent", "continual"].clean != still.answers["tent", "continual"].clean
    anew = run(model, data, methods=["tent"], streams=["reset"])
    assert len(anew.answers["tent", "reset"].clean) == 2
    clean = anew.by_stream()["clean"].item()
    assert clean == pytest.approx(100 * np.mean(anew.answers["tent", "reset"].clean))


def test_costs_and_dependence_are_those_of_the_stream(everything):
    table = everything.by_stream().set_index(["stream", "method"])
    for name in STREAMS:
        rows = table.loc[name]
        assert rows.loc[["source", "bn-1", "lame", "tuned"], "forward"].tolist() == [1] * 4
        assert rows.loc["tent", ["forward", "train"]].tolist() == [0, 1]
        assert rows.loc["cotta", "train"] == 1
        assert 2 <= rows.loc["cotta", "forward"] <= 3
        assert rows.loc[["source", "bn-1", "bn-alpha", "lame", "tuned"], "past"].tolist() == [False] * 5
        assert rows.loc[["tent", "eta", "eata", "sar", "cotta", "roid"], "past"].all()
        neighbours = rows["neighbours"].to_dict()
        assert neighbours["voting"] == neighbours["bn-1"] == neighbours["lame"] == (name != "single")
        assert not neighbours["source"]
        assert not neighbours["tuned"]
    assert 1 < table.loc[("mixed", "roid"), "train"] < 2


def test_resets_are_counted_by_stream(model, data):
    sure = copy.deepcopy(model)
    sure[-1].weight.data.mul_(100)
    found = run(sure, data, methods=["sar"], streams=["reset", "mixed", "single"]).by_stream()
    assert found["resets"].tolist() == [6, 5, 20], "one for each batch"


def test_seeds_are_joined_and_the_same_seed_gives_the_same(model, data):
    options = {"methods": ["source", "cotta"], "streams": ["mixed"]}
    options["settings"] = {"cotta": CottaSettings(views=1, confidence=1.1)}
    first, again, other = (run(model, data, **options, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(*(each.answers["cotta", "mixed"].correct for each in (first, again)))
    assert not np.array_equal(first.image, other.image)
    assert joined([first, other], [3, 4])["seed"].tolist() == [3, 3, 4, 4]


@pytest.mark.parametrize("name", ["cotta", "roid", "sar", "eata", "tuned"])
def test_a_cell_does_not_depend_on_other_methods_and_streams(name, shared_model, data, everything):
    options = {"methods": [name], "settings": {"cotta": CottaSettings(views=2)} if name == "cotta" else {}}
    if name == "tuned":
        options = {"methods": [], "networks": {"tuned": shared_model}}
    alone = run(shared_model, data, streams=["ordered"], **options).answers[name, "ordered"]
    among = everything.answers[name, "ordered"]
    assert np.array_equal(alone.correct, among.correct)
    assert vars(alone) | {"correct": 0} == vars(among) | {"correct": 0}


def test_the_losses_of_roid_are_divided_by_the_batch_of_the_stream(model, data, monkeypatch):
    asked = []
    monkeypatch.setattr(
        Roid, "weigh", lambda self, logits: asked.append(self.settings.batch_size) or logits[:, 0].exp()
    )
    run(model, data, methods=["roid"], streams=["mixed"], batch_size=50)
    run(model, data, methods=["roid"], streams=["mixed"], settings={"roid": RoidSettings(batch_size=7)})
    assert set(asked) == {50, 7}


def test_a_batch_of_all_images_does_not_have_correlated_classes_and_that_is_said(model, data, caplog):
    with caplog.at_level(logging.INFO, "deeppatch"):
        run(model, data, methods=["source"], streams=["ordered"])
        assert "a batch holds all" not in caplog.text
        run(model, data, methods=["source"], streams=["ordered"], batch_size=100)
    assert "a batch holds all 100 images of a degradation" in caplog.text


def test_what_is_not_defined_is_logged_and_mistakes_are_one_line(model, data, caplog):
    with caplog.at_level(logging.INFO, "deeppatch"):
        run(model, data, methods=["roid"], streams=["single"])
    assert "roid: not defined on the stream single, in which a batch has one image" in caplog.messages
    with pytest.raises(UserError, match="reference='best': there are the rows source"):
        run(model, data, methods=["source"], reference="best")
    with pytest.raises(UserError, match="networks have other names"):
        run(model, data, methods=["source"], networks={"source": model})
    with pytest.raises(UserError, match="settings of tent: there is no such method among source"):
        run(model, data, methods=["source"], settings={"tent": TentSettings()})
    with pytest.raises(UserError, match="no adaptation called bn"):
        run(model, data, methods=["bn"])
    with pytest.raises(UserError, match="reference=None"):
        run(model, data, methods=[])
