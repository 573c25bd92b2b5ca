"""rank_filters on any module, against the plain definitions; what it leaves as it was, and what it refuses."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch.artifacts import Checkpoint, state_digest
from deeppatch.data import views
from deeppatch.data.corruptions import GaussianBlur
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.errors import UserError
from deeppatch.graph.network_graph import Graph, Untraceable
from deeppatch.localization import names, ranking, scoring_run
from deeppatch.localization.scorers import SCORERS
from deeppatch.localization.scoring import rank_filters
from deeppatch.localization.successive_elimination import LayerElimination
from deeppatch.zoo.classifier import Classifier

SIGMAS = (0.7, 1.5)
CONVOLUTIONS = ("0", "3")


@pytest.fixture
def blur() -> GaussianBlur:
    """Two levels, for images that are not square."""
    return GaussianBlur(SIGMAS)


@pytest.fixture
def model() -> nn.Sequential:
    """A plain module that reads pixels as they are."""
    torch.manual_seed(2)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 5, 3), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))
    with torch.no_grad():
        model.train()(torch.rand(64, 3, 10, 14))  # statistics of its own
        model.eval()[7].weight.mul_(30)
    return model


@pytest.fixture
def data(model) -> Data:
    """Forty-three images of coarse squares that the module classifies correctly where they are clean."""
    coarse = torch.randint(0, 256, (43, 3, 5, 7), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    pixels = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)
    with torch.no_grad():
        model[7].bias -= model(pixels / 255).mean(0)
        images = Images(pixels, model(pixels / 255).argmax(1))
    return Data(images, images, images, ("a", "b", "c", "d"))


def stream(data: Data, blur: GaussianBlur, method: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return degraded pixels, labels and clean pixels, all in one batch, as a method reads them."""
    paired = method in ("featswap", "activation")
    view = views.random_level_view(data.val, blur, 999, 2021) if paired else views.expand(data.val, blur, 999)
    ((degraded, labels),) = view
    return degraded, labels, data.val.pixels[view.index] / 255


@torch.no_grad()
def plain(model: nn.Sequential, data: Data, blur: GaussianBlur, method: str) -> dict[str, list[float]]:
    """Score by the definition, layer by layer and channel by channel."""
    degraded, labels, clean = stream(data, blur, method)
    apart = copy.deepcopy(model)
    apart[2].inplace = False

    def share(logits: Tensor) -> float:
        return (logits.argmax(1) == labels).double().mean().item()

    found: dict[str, list[float]] = {}
    for name in CONVOLUTIONS:
        index = int(name)
        y, y_clean = apart[: index + 1](degraded), apart[: index + 1](clean)
        found[name] = []
        for channel in range(y.shape[1]):
            edited = y.clone()
            edited[:, channel] = 0 if method == "perfloss" else y_clean[:, channel]
            change = share(apart[index + 1 :](edited)) - share(apart(degraded))
            found[name].append(-change if method == "perfloss" else change)
    return found


def plain_taylor(model: nn.Sequential, data: Data, blur: GaussianBlur) -> dict[str, list[float]]:
    degraded, labels, _ = stream(data, blur, "taylor")
    found = {}
    for name in CONVOLUTIONS:
        index = int(name)
        y = model[: index + 1](degraded).detach().requires_grad_()
        later = copy.deepcopy(model[index + 1 :])
        later[0 if name == "3" else 1] = nn.ReLU()
        (gradient,) = torch.autograd.grad(F.cross_entropy(later(y), labels), y)
        found[name] = (-(y * gradient).sum((0, 2, 3))).tolist()
    return found


@torch.no_grad()
def plain_activation(model: nn.Sequential, data: Data, blur: GaussianBlur) -> dict[str, list[float]]:
    degraded, _, clean = stream(data, blur, "activation")
    last = {"0": 2, "3": 4}  # behind the normalisation
    maps = {name: model[:end](degraded) - model[:end](clean) for name, end in last.items()}
    return {name: change.abs().mean((0, 2, 3)).tolist() for name, change in maps.items()}


@pytest.mark.parametrize("batch_size", [5, 256])
@pytest.mark.parametrize("method", SCORERS)
def test_every_method_equals_its_definition(model, data, blur, method, batch_size):
    before = state_digest(model.state_dict())
    model.train()
    found = rank_filters(model, data, blur, method=method, batch_size=batch_size)
    assert all(module.training for module in model.modules()), "the model's mode is its owner's"
    model.eval()
    assert state_digest(model.state_dict()) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    if method in ("perfloss", "featswap"):
        expected = plain(model, data, blur, method)
    else:
        expected = {"taylor": plain_taylor, "activation": plain_activation}[method](model, data, blur)
    assert found.method == method
    for name, row in expected.items():
        assert found.scores[name] == pytest.approx(row, rel=1e-3, abs=1e-5)
    assert len({round(value, 6) for row in expected.values() for value in row}) > 4, "the case says nothing"
    again = ranking.rank(method, found.scores, descending=SCORERS[method].descending)
    assert found.order == again.order


def test_a_classifier_is_ranked_as_the_module_that_normalises_itself(model, data, blur):
    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = model

        def forward(self, pixels: Tensor) -> Tensor:
            return self.network((pixels - 0.5) / 0.5)

    inside = rank_filters(Classifier(model, [0.5] * 3, [0.5] * 3).eval(), data, blur)
    outside = rank_filters(Halved(), data, blur)
    assert outside.scores == {f"network.{name}": row for name, row in inside.scores.items()}


def test_a_network_that_cannot_be_traced_is_ranked_in_whole_passes(model, data, blur, monkeypatch):
    expected = rank_filters(model, data, blur, method="featswap")

    def refuse(self, network, example):
        raise Untraceable("its forward pass depends on values")

    monkeypatch.setattr(Graph, "__init__", refuse)
    assert rank_filters(model, data, blur, method="featswap") == expected


def test_bfloat16_only_where_the_processor_has_it(model, data, blur, monkeypatch):
    expected = rank_filters(model, data, blur)
    monkeypatch.setattr("deeppatch.runtime.has_bfloat16", lambda _device: False)
    assert rank_filters(model, data, blur, amp=True) == expected


def test_little_memory_gives_the_same_ranking(model, data, blur):
    small = scoring_run.ScoringRun(model, data.val, blur, batch_size=20, memory=1)
    assert [small.fitting_batch_size(size) for size in (1, 2**18, 2**30)] == [20, 4, 1]
    assert rank_filters(model, data, blur, memory=1) == rank_filters(model, data, blur)


def test_refinement_sorts_the_filters_nearest_the_cut_by_exact_scores(model, data, blur):
    rough, exact = (rank_filters(model, data, blur, method=method) for method in ("taylor", "perfloss"))
    refined = rank_filters(model, data, blur, method="taylor", refine=2, ratio=0.5)
    windows = ranking.nearest_cut(rough, 0.5, "front", 2)
    assert {name: list(row) for name, row in refined.facts["refined"].items()} == windows
    scores = {name: [exact.scores[name][channel] for channel in row] for name, row in windows.items()}
    assert refined == ranking.refine(rough, windows, scores, descending=False)


@pytest.mark.parametrize("method", names.EXACT_METHODS)
def test_elimination_without_a_decision_is_exact_and_with_one_spares_passes(model, data, blur, method, monkeypatch):
    spared = rank_filters(model, data, blur, method=method, eliminate=0.4, ratio=0.5)
    assert 0 < spared.facts["image_passes"] < spared.facts["all_image_passes"]
    monkeypatch.setattr(LayerElimination, "decide", lambda layer, delta, unread: None)
    whole, exact = (rank_filters(model, data, blur, method=method, eliminate=delta) for delta in (0.1, None))
    assert whole.order == exact.order
    assert whole.facts["image_passes"] == whole.facts["all_image_passes"]


@pytest.mark.parametrize("more", [{}, {"eliminate": 1e-6}, {"method": "taylor", "refine": 4}])
def test_an_interrupted_ranking_continues(model, data, blur, tmp_path, monkeypatch, more):
    monkeypatch.setattr(scoring_run, "at_most_once_a_second", lambda save: lambda _state: save())
    whole = rank_filters(model, data, blur, batch_size=7, **more)
    save, saves = Checkpoint.save, []

    def stop(self, state):
        save(self, state)
        saves.append(1)
        if len(saves) == 10:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoint, "save", stop)
        checkpoint = Checkpoint(tmp_path / "checkpoint.pt", {}, resume=False)
        rank_filters(model, data, blur, batch_size=7, checkpoint=checkpoint, **more)
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", {}, resume=True)
    assert checkpoint.load() is not None
    resumed = rank_filters(model, data, blur, batch_size=7, checkpoint=checkpoint, **more)
    assert (resumed, resumed.facts) == (whole, whole.facts)


def test_a_random_ranking_depends_on_the_seed_only(model, data, blur):
    found = rank_filters(model, data, blur, method="random", seed=3)
    assert found == ranking.random_ranking({"0": 6, "3": 5}, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "guess"}, "method 'guess'"),
        ({"side": "middle"}, "side 'middle'"),
        ({"refine": 2}, "refine=2"),
        ({"method": "taylor", "refine": -1}, "refine=-1"),
        ({"eliminate": 0.5}, "eliminate=0.5"),
        ({"method": "taylor", "eliminate": 0.1}, "eliminate=0.1"),
        ({"eliminate": 0.1, "side": "random"}, "makes no cut"),
    ],
)
def test_contradictions_are_refused(model, data, blur, given, message):
    with pytest.raises(UserError, match=message):
        rank_filters(model, data, blur, **given)


def test_names_are_those_of_the_registries():
    assert set(names.METHODS) == {*SCORERS, "random"}
    assert set(names.RANKINGS) == {*SCORERS, "random", "ratioestim"}
    assert tuple(ranking.SIDES) == names.SIDES
    assert all(SCORERS[name].method == name for name in SCORERS)


@pytest.mark.parametrize("method", names.METHODS)
def test_a_network_without_a_convolution_to_rank_is_refused_by_every_method(method):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 16, 2))
    images = Images(torch.randint(0, 256, (8, 3, 12, 16), dtype=torch.uint8), torch.arange(8) % 2)
    with pytest.raises(UserError, match="no filter can be ranked or patched: this network has no nn.Conv2d"):
        rank_filters(model, Data(images, images, images, ("cat", "dog")), "gaussian-blur", method=method)


class WithMemory(nn.Module):
    """Has a layer that returns a tuple, a convolution that is not called, and one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.conv, self.twice = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.memory, self.fc = nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        x = self.twice(self.twice(torch.relu(self.conv(x))))
        return self.fc(self.memory(x.flatten(2).transpose(1, 2)[:, :5])[0].mean(1))


@pytest.mark.parametrize("method", names.METHODS)
def test_only_convolutions_that_run_once_are_ranked(method):
    images = Images(torch.randint(0, 256, (8, 3, 12, 16), dtype=torch.uint8), torch.arange(8) % 2)
    ranking = rank_filters(WithMemory(), Data(images, images, images, ("cat", "dog")), "gaussian-blur", method=method)
    assert list(ranking.order) == ["conv"]
