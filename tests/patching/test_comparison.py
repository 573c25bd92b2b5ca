"""The networks of a comparison are measured as each of them is by itself, and their rates add up."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from deeppatch.artifacts import state_digest
from deeppatch.data import views
from deeppatch.data.corruptions import corruption
from deeppatch.data.dataset import Data
from deeppatch.data.images import to_float
from deeppatch.errors import StaleArtifact
from deeppatch.evaluation import correct_predictions, evaluate
from deeppatch.metrics import paired_difference
from deeppatch.patching.attachment import attach
from deeppatch.patching.calibration import fit_switch
from deeppatch.patching.comparison import Comparison, compare_networks
from deeppatch.patching.patch_file import Patch, extract

COUNT = 60
LEVELS = corruption({"dark": lambda pixels, _g: 0.97 * pixels, "darker": lambda pixels, _g: 0.95 * pixels})


class Case:
    """A network in train mode with a patch drawn at random, a fine-tuned one, and grey images of 20x28 pixels."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        part = (torch.rand(COUNT, 1, 20, 28), torch.arange(COUNT) % 2)
        self.data = Data.of(part, part, part)
        self.model, self.tuned = self.network(), self.network()
        own = copy.deepcopy(self.model).eval()
        attachment = attach(own, {"0": [1, 4, 6]}, "replace", self.data.example)
        with torch.no_grad():
            for unit in attachment.units.values():
                for value in unit.new_parameters().values():
                    value.add_(0.1 * torch.randn(value.shape))
        self.patch: Patch = extract(attachment, state_digest(self.model.state_dict()))
        self.switched = fit_switch(self.model, self.patch, self.data, LEVELS, max_clean_drop=50)

    def network(self) -> nn.Module:
        """Draw a network that finds both classes in half of the images each."""
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveMaxPool2d(1), nn.Flatten(),
            nn.Linear(8, 2),
        )  # fmt: skip
        with torch.no_grad():
            logits = network.eval()(to_float(self.data.test.pixels))
            network[-1].bias[0] -= (logits[:, 0] - logits[:, 1]).median()
        return network.train()

    def compare(self, **given) -> Comparison:
        return compare_networks(self.model, self.patch, self.switched, self.data, LEVELS, seed=4, **given)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


@pytest.mark.parametrize("size", [1, 7, 256])
def test_each_network_is_measured_as_by_itself(case, size):
    found = case.compare(finetuned=case.tuned, batch_size=size)
    networks = {
        "pretrained": case.model,
        "finetuned": case.tuned,
        "patched always on": case.patch.apply(case.model, case.data.example),
        "switched": case.switched,
    }
    assert list(found.correct) == [*networks, "oracle router"]
    for name, network in networks.items():
        want = correct_predictions(network, case.data.test, LEVELS, batch_size=size, seed=4)
        assert torch.equal(found.correct[name].by_level, want.by_level), name
        assert torch.equal(found.correct[name].in_stream, want.in_stream), name
    oracle = [found.correct["pretrained"].by_level[0], *found.correct["patched always on"].by_level[1:]]
    assert torch.equal(found.correct["oracle router"].by_level, torch.stack(oracle))
    levels = views.mixed_stream(case.data.test, LEVELS, size, 4).levels
    both = zip(found.correct["pretrained"].in_stream, found.correct["patched always on"].in_stream, strict=True)
    want = [(new if level else old).item() for level, (old, new) in zip(levels, both, strict=True)]
    assert found.correct["oracle router"].in_stream.tolist() == want
    assert (found.images, found.level_names) == (COUNT, ("dark", "darker"))


def test_accuracies_are_those_of_evaluate_and_differ_by_repair_and_break(case):
    found = case.compare()
    accuracies, changes = found.accuracies("all levels"), found.changes("all levels")
    assert list(accuracies["switched"]) == ["clean", "dark", "darker", "all levels", "append", "mixed"]
    assert list(changes) == ["patched always on", "switched", "oracle router"]
    table = evaluate({"pretrained": case.model, "switched": case.switched}, case.data, LEVELS, seed=4)
    for name, row in table.iterrows():
        for view in ("clean", "dark", "darker", "mixed"):
            assert accuracies[name][view] == row[view]
    assert changes["switched"]["repair"]["mixed"] == table.loc["switched", "repair"]
    assert changes["switched"]["break"]["mixed"] == table.loc["switched", "break"]
    for name, rates in changes.items():
        for view, value in accuracies[name].items():
            before = accuracies["pretrained"][view]
            assert value == pytest.approx(before + rates["repair"][view] - rates["break"][view])
    assert any(rates["repair"]["mixed"] + rates["break"]["mixed"] for rates in changes.values())


def test_the_routing_is_that_of_the_switched_model(case):
    found = case.compare()
    with torch.no_grad():
        moved = case.switched.route(to_float(case.data.test.pixels))[2]
    assert torch.equal(found.routing.switched[0], moved)
    measured = found.router_metrics()
    assert measured["false_switch_percent"] == pytest.approx(100 * moved.double().mean().item())
    assert list(measured["auroc"]) == ["dark", "darker", "mean"]


def test_networks_are_left_as_they_were(case):
    networks = (case.model, case.tuned, case.switched)
    before = [state_digest(each.state_dict()) for each in networks]
    modes = [[module.training for module in each.modules()] for each in networks]
    case.compare(finetuned=case.tuned)
    assert [state_digest(each.state_dict()) for each in networks] == before
    assert [[module.training for module in each.modules()] for each in networks] == modes


def test_a_patch_of_another_model_is_refused(case):
    with pytest.raises(StaleArtifact, match="other base weights"):
        compare_networks(case.tuned, case.patch, case.switched, case.data, LEVELS)


def test_differences_are_those_of_the_pairs_of_networks_with_intervals(case):
    found = case.compare(finetuned=case.tuned)
    differences, accuracies = found.differences("mean"), found.accuracies("mean")
    assert list(differences) == [
        "finetuned against pretrained", "switched against pretrained", "switched against finetuned",
    ]  # fmt: skip
    for pair, by_view in differences.items():
        after, before = pair.split(" against ")
        assert list(by_view) == ["clean", "dark", "darker", "mean", "mixed"]
        for view, interval in by_view.items():
            assert interval.estimate == pytest.approx(accuracies[after][view] - accuracies[before][view])
            assert interval.low < interval.high
    plain = paired_difference(found.correct["switched"].in_stream, found.correct["finetuned"].in_stream)
    assert differences["switched against finetuned"]["mixed"] == plain.scaled(100)
    assert list(case.compare().differences()) == ["switched against pretrained"]
