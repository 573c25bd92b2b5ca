"""compare: every network on every view as a plain loop has it, and nothing computed twice."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import deeppatch as dp
from deeppatch.cache import ContentCache
from deeppatch.data import views
from deeppatch.data.corruptions import GaussianBlur, UnpairedCorruption
from deeppatch.data.images import Images
from deeppatch.errors import UserError
from deeppatch.ledger import measuring, requirements
from deeppatch.ledger.comparing import compare
from deeppatch.ledger.identity import network_digest
from deeppatch.ledger.records import Outcomes
from deeppatch.ledger.streams import kinds_and_severities, ledger_streams
from deeppatch.report.page_tables import costs

NAMES = "fog,gaussian_noise,gaussion"


class Counted(nn.Module):
    """A network that counts the batches that it has seen; the counts are no part of its digest."""

    def __init__(self, seed: int, classes: int = 5) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, classes))
        self._batches = 0

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self._batches += 1
        return self.layers(pixels)


class Routed(Counted):
    """A network that sends dark images to another head."""

    def route(self, pixels):
        dark = pixels.mean((1, 2, 3)) < 0.5
        logits = self(pixels)
        return torch.where(dark[:, None], -logits, logits), pixels.mean((1, 2, 3)), dark


class Experts(Routed):
    """The same by a method that names what it returns, with a third network."""

    def answer(self, pixels):
        logits, _scores, dark = self.route(pixels)
        return SimpleNamespace(logits=logits, expert=2 * dark)


@pytest.fixture
def test_images() -> Images:
    draw = torch.Generator().manual_seed(5)
    return Images(torch.randint(0, 256, (30, 3, 12, 12), generator=draw, dtype=torch.uint8), torch.arange(30) % 5)


def plain_outcomes(network: nn.Module, batches: views.View) -> Outcomes:
    """One image at a time, as the definitions say."""
    rows = []
    for pixels, labels in batches:
        for pixel, label in zip(pixels, labels, strict=True):
            with torch.no_grad():
                logits = network(pixel[None])[0].double().numpy()
            p = np.exp(logits) / np.exp(logits).sum()
            truth = np.eye(len(p))[int(label)]
            rows.append((p.argmax(), p.max(), np.log(p[int(label)]), ((p - truth) ** 2).sum()))
    return Outcomes(*(np.array(column) for column in zip(*rows, strict=True)))


def same(one: Outcomes, two: Outcomes) -> bool:
    return all(
        (getattr(one, name) is None and getattr(two, name) is None)
        or np.array_equal(getattr(one, name), getattr(two, name))
        for name in measuring.NAMES
    )


def test_every_cell_is_that_of_a_plain_loop(test_images):
    networks = {"first": Counted(1), "second": Counted(2)}
    ledger = compare(networks, test_images, NAMES, held_out="snow", batch_size=8)
    degrade, snow = dp.corruption(NAMES), dp.corruption("snow")
    names = ["clean", *degrade.level_names, *snow.level_names, "mixed"]
    assert [view.name for view in ledger.views] == names
    assert ledger.outcomes.keys() == {(name, view) for name in networks for view in names}
    streams = [views.clean(test_images, 8)]
    streams += [views.levels_view(test_images, each, [level], 8) for each in (degrade, snow)
                for level in range(1, len(each) + 1)]  # fmt: skip
    streams.append(views.mixed_stream(test_images, degrade, 8, 2021))
    for view, stream in zip(ledger.views, streams, strict=True):
        assert np.array_equal(view.labels, stream.labels.numpy())
        assert np.array_equal(test_images.labels.numpy()[view.image], view.labels), "one number for one image"
        for name, network in networks.items():
            want, found = plain_outcomes(network, stream), ledger.outcomes[name, view.name]
            assert np.array_equal(found.prediction, want.prediction)
            for field in ("confidence", "log_likelihood", "brier"):
                assert getattr(found, field).dtype == np.float64
                np.testing.assert_allclose(getattr(found, field), getattr(want, field), atol=1e-5)
            assert np.array_equal(ledger.correct(name, view.name), want.prediction == view.labels)


class Silent(Counted):
    """A network whose method `route` returns what the test says."""

    def __init__(self, *answer):
        super().__init__(1)
        self._answer = answer

    def route(self, pixels):
        return (self(pixels), *self._answer)


def test_a_network_that_does_not_say_where_it_routes_counts_as_one_that_does_not(test_images):
    ledger = compare({"plain": Counted(1), "silent": Silent(None), "scored": Silent(torch.zeros(1), None)}, test_images)
    for name in ("silent", "scored"):
        assert same(ledger.outcomes[name, "clean"], ledger.outcomes["plain", "clean"])


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ((), "odd: its method route must return logits (N, classes) first, and last which network answered"),
        (("none",), "a tensor of 30 numbers, or None; it says str"),
        ((torch.zeros(3, 2),), "a tensor of 30 numbers, or None; it says a tensor (3, 2)"),
    ],
)
def test_a_method_route_that_returns_something_else_is_a_mistake_in_one_line(test_images, returned, said):
    with pytest.raises(UserError, match="odd: ") as error:
        compare({"odd": Silent(*returned)}, test_images)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_accuracies_are_those_of_evaluate(test_images):
    networks = {"first": Counted(1), "second": Counted(2)}
    table = dp.compare(networks, test_images, NAMES, batch_size=8).table()
    known = dp.evaluate(networks, test_images, NAMES, batch_size=8)
    fog = [name for name in known if name.startswith("fog")]
    for name in networks:
        assert table.loc[name, "clean"] == pytest.approx(known.loc[name, "clean"])
        assert table.loc[name, "mixed"] == pytest.approx(known.loc[name, "mixed"])
        assert table.loc[name, "weather"] == pytest.approx(known.loc[name, fog].mean())
        for measure, column in (("repaired", "repair"), ("newly wrong", "break")):
            if name != "first":
                assert table.loc[name, measure] == pytest.approx(known.loc[name, column])
    assert np.isnan(table.loc["first", "repaired"]), "of the base there is nothing to say"


def test_views_say_what_they_are(test_images):
    ledger = compare({"one": Counted(1)}, test_images, NAMES, held_out="snow", batch_size=8)
    said = {view.name: (view.kind, view.severity, view.group, view.held_out) for view in ledger.views}
    assert said["clean"] == ("clean", 0, "", False)
    assert said["mixed"] == ("mixed", 0, "", False)
    assert said["gaussion-s=1"] == ("gaussion", 2, "gaussion", False)
    assert said["fog-3"] == ("fog", 3, "weather", False)
    assert said["snow-5"] == ("snow", 5, "weather", True)
    assert next(kinds_and_severities(["noise"]))[1] == "own noise", "the name of a group is taken"


def test_a_second_run_computes_nothing_and_finds_the_same(test_images, tmp_path):
    networks = {"first": Counted(1), "second": Counted(2)}
    before = compare(networks, test_images, "fog", cells=tmp_path, batch_size=8)
    for network in networks.values():
        assert network._batches == 1 + 7 * 4, "two images to check it, then each batch of each view once"
        network._batches = 0
    after = compare(networks, test_images, "fog", cells=tmp_path, batch_size=8)
    assert [network._batches for network in networks.values()] == [1, 1]
    assert all(same(before.outcomes[key], after.outcomes[key]) for key in before.outcomes)


def test_a_network_or_a_type_that_is_added_computes_its_own_cells_only(test_images, tmp_path):
    networks = {"first": Counted(1), "second": Counted(2)}
    compare({"first": networks["first"]}, test_images, "fog", cells=tmp_path, batch_size=8)
    networks["first"]._batches = 0
    compare(networks, test_images, "fog", cells=tmp_path, batch_size=8)
    assert networks["first"]._batches == 1
    assert networks["second"]._batches == 1 + 7 * 4
    for network in networks.values():
        network._batches = 0
    compare(networks, test_images, "fog,snow", cells=tmp_path, batch_size=8)
    assert {network._batches for network in networks.values()} == {1 + 6 * 4}, "snow, and another mixed stream"


def test_degraded_images_are_made_once_for_all_networks(test_images, tmp_path):
    made = []

    def dark(pixels, generator):
        made.append(len(pixels))
        return pixels / 2

    calls = []
    for count in (1, 3):
        made.clear()
        compare({str(seed): Counted(seed) for seed in range(count)}, test_images, dark, batch_size=8)
        calls.append(list(made))
    assert calls[0] == calls[1]


def test_a_damaged_cell_is_made_again_and_logged(test_images, tmp_path, caplog):
    network = Counted(1)
    before = compare({"one": network}, test_images, "fog", cells=tmp_path, batch_size=8)
    path = sorted(tmp_path.iterdir())[3]
    content = path.read_bytes()
    path.write_bytes(content[:-8] + bytes(8))
    network._batches = 0
    with caplog.at_level("INFO", "deeppatch"):
        after = compare({"one": network}, test_images, "fog", cells=tmp_path, batch_size=8)
    assert f"{path} is damaged; computing it again" in caplog.text
    assert network._batches == 1 + 4
    assert path.read_bytes() == content
    assert all(same(before.outcomes[key], after.outcomes[key]) for key in before.outcomes)


@pytest.mark.parametrize("batches", [2, 9, 14])
def test_a_run_that_ends_early_loses_one_view_at_most(test_images, tmp_path, monkeypatch, batches):
    networks = {"first": Counted(1), "second": Counted(2)}
    seen = []

    def stopping(given, *rest):
        if len(seen) == 2 * batches:
            raise KeyboardInterrupt
        seen.append(given)
        return whole(given, *rest)

    whole = measuring._answer
    monkeypatch.setattr(measuring, "_answer", stopping)
    with pytest.raises(KeyboardInterrupt):
        compare(networks, test_images, "fog", cells=tmp_path, batch_size=8)
    finished = batches // 4  # views of four batches each
    assert len(list(tmp_path.glob("*.safetensors"))) == 2 * finished
    monkeypatch.undo()
    for network in networks.values():
        network._batches = 0
    compare(networks, test_images, "fog", cells=tmp_path, batch_size=8)
    assert {network._batches for network in networks.values()} == {1 + 4 * (7 - finished)}


def test_what_a_cell_depends_on(test_images, tmp_path):
    """Pixels, degradation, severity, seed of the stream, and the network; no two share a digest."""
    other = Images(test_images.pixels.flip(3), test_images.labels)

    def digests(images, corruption, seed=2021):
        found = ledger_streams(images, dp.corruption(corruption), seed=seed, batch_size=8)
        return {stream.view.name: stream.view.digest for stream in found}

    fog = digests(test_images, "fog")
    assert len(set(fog.values())) == 7
    assert not set(fog.values()) & set(digests(other, "fog").values())
    assert digests(test_images, "fog,snow").items() >= {k: v for k, v in fog.items() if k != "mixed"}.items()
    changed = {name for name, value in digests(test_images, "fog", seed=7).items() if value != fog[name]}
    assert changed == {"mixed"}
    one, two = ({"rain": lambda pixels, _generator, by=by: pixels * by} for by in (0.5, 0.6))
    assert digests(test_images, one)["rain"] != digests(test_images, two)["rain"]
    assert digests(test_images, one)["clean"] == fog["clean"]


def test_images_of_files_count_in_full(test_images):
    """Of images in files not the first 64 count only: any may be replaced."""
    many = Images(test_images.pixels.repeat(4, 1, 1, 1), test_images.labels.repeat(4))
    own = Images(many.pixels.flip(2), many.labels)
    other = Images(own.pixels.clone(), own.labels)
    other.pixels[100] = 0
    found = [
        ledger_streams(many, UnpairedCorruption("rain", {"test": many}, {"test": each}), batch_size=8)[1].view
        for each in (own, other)
    ]
    assert found[0].digest != found[1].digest
    assert set(found[0].image) == set(range(120, 240)), "they show other images than the clean ones"


def test_a_network_is_what_it_computes_not_its_weights_only():
    plain, routed = Counted(1), Routed(1)
    assert network_digest(plain) != network_digest(routed)
    assert network_digest(plain) == network_digest(Counted(1))
    assert network_digest(plain) != network_digest(Counted(2))
    voting = copy.deepcopy(routed)
    voting.vote = True
    assert network_digest(voting) != network_digest(routed)
    plain.train()
    assert network_digest(plain) == network_digest(Counted(1))


def test_a_network_that_routes_says_which_answered(test_images, tmp_path):
    for _again in range(2):
        networks = {"plain": Counted(1), "routed": Routed(1), "experts": Experts(1)}
        ledger = compare(networks, test_images, "fog", cells=tmp_path, batch_size=8)
        dark = test_images.pixels.float().mean((1, 2, 3)) / 255 < 0.5
        found = ledger.outcomes["routed", "clean"]
        assert np.array_equal(found.routed, dark.long().numpy())
        assert np.array_equal(ledger.outcomes["experts", "clean"].routed, 2 * found.routed)
        plain = ledger.outcomes["plain", "clean"]
        assert plain.routed is None
        assert np.array_equal(found.prediction[~dark.numpy()], plain.prediction[~dark.numpy()])
        assert 0 < dark.sum() < 30


def test_a_network_that_reads_its_neighbours_has_nothing_on_the_mixed_stream(test_images):
    voting = Counted(1)
    voting.vote = True
    ledger = compare({"plain": Counted(1), "voting": voting}, test_images, "fog", batch_size=8)
    assert ("voting", "fog-1") in ledger.outcomes
    assert ("voting", "mixed") not in ledger.outcomes
    table = ledger.table()
    assert np.isnan(table.loc["voting", "mixed"])
    assert not np.isnan(table.loc["plain", "mixed"])


def test_clean_images_only(test_images):
    ledger = compare({"first": Counted(1), "second": Counted(2)}, test_images, batch_size=8)
    assert list(ledger.table().columns) == ["clean", "repaired", "newly wrong"]
    assert ledger.numbers("second").keys() == {("clean", 0), ("flips", 0)}


def test_modes_of_the_networks_are_left_as_they_were(test_images):
    network = Counted(1).train()
    compare({"one": network}, test_images, batch_size=8)
    assert network.training


@pytest.mark.parametrize(
    ("networks", "more", "said"),
    [
        ({}, {}, r"base=None: there are the networks \(none\)"),
        ({"one": Counted(1)}, {"base": "two"}, "base='two': there are the networks one"),
        ({"one": Counted(1), "few": Counted(1, 3)}, {}, "few: the model has 3 outputs, the data have 5 classes"),
        ({"one": Counted(1)}, {"batch_size": 0}, "batch_size=0: give a number above 0"),
    ],
)
def test_mistakes(test_images, networks, more, said):
    with pytest.raises(UserError, match=said):
        compare(networks, test_images, GaussianBlur(), **more)


def test_held_out_levels_need_names_of_their_own(test_images):
    def darker(pixels, _generator):
        return pixels / 2

    seen, held_out = (dp.corruption({"rain": each}) for each in (lambda pixels, _generator: pixels, darker))
    with pytest.raises(UserError, match="rain: held out and not; give each degradation once"):
        compare({"old": Counted(0)}, test_images, seen, held_out=held_out)
    with pytest.raises(UserError, match="fog-1"):
        compare({"old": Counted(0)}, test_images, "fog,snow", held_out="fog")


def test_no_images(test_images):
    with pytest.raises(UserError, match="no test images"):
        compare({"old": Counted(0)}, test_images.take(torch.arange(0)))


def test_what_a_network_stores_is_not_known_here(test_images):
    ledger = compare({"old": Counted(0), "new": Counted(1)}, test_images)
    assert ledger.networks["old"].bytes == 0
    assert ledger.networks["new"].bytes is None
    with pytest.raises(UserError, match="bytes was not measured of this network"):
        requirements.judge([requirements.requirement("bytes<=1")], ledger.numbers("new"))
    assert [str(cells[2]) for _name, cells in costs(ledger).rows] == ["-", "-"]


def test_probabilities_of_extreme_logits_are_finite():
    found = measuring._measured(torch.tensor([[1000.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1]))
    assert found["confidence"].tolist() == [1.0, 0.5]
    assert found["brier"].tolist() == [0.0, 0.5]
    assert found["log_likelihood"].tolist() == pytest.approx([0.0, float(F.log_softmax(torch.zeros(2), 0)[0])])


def test_the_cells_are_a_cache_that_others_can_read(test_images, tmp_path):
    ledger = compare({"one": Counted(1)}, test_images, batch_size=8, cells=tmp_path)
    view = ledger.views[0]
    facts = {"network": ledger.networks["one"].digest, "view": view.digest, "amp": False, "batch_size": 8,
             "device": "cpu"}  # fmt: skip
    entry = ContentCache(tmp_path).read(facts)
    assert entry is not None
    assert np.array_equal(entry.tensors["prediction"].numpy(), ledger.outcomes["one", "clean"].prediction)
