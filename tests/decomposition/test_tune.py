"""Fine-tuning a decomposed network, or its head on features: a copy trains, and an interruption leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deeppatch.artifacts import Checkpoint, state_digest, tensors_to_bytes
from deeppatch.data import views
from deeppatch.data.dataset import Data
from deeppatch.decomposition.features import Features, ShuffledFeatures
from deeppatch.decomposition.head import DecomposedHead, decompose
from deeppatch.decomposition.tune import tune
from deeppatch.training import History

EPOCHS = 4
INDICES = torch.stack([torch.arange(label, label + 6) for label in range(5)])
Run = Callable[..., tuple[nn.Module, History]]


@pytest.fixture(params=["head", "network"])
def module(request, tiny, images) -> nn.Module:
    """What is tuned, with random numbers drawn while it trains."""
    if request.param == "head":
        return nn.Sequential(nn.Dropout(0.3), DecomposedHead.from_linear(tiny.network.fc, INDICES)).eval()
    network = decompose(tiny, Data(images, images, images, tuple("abcde")), INDICES)
    network.network.bn2 = nn.Sequential(network.network.bn2, nn.Dropout(0.3))
    return network.eval()


@pytest.fixture
def streams(module, images) -> list[views.Shuffled] | list[ShuffledFeatures]:
    if isinstance(module, nn.Sequential):
        values = torch.rand(60, 12, generator=torch.Generator().manual_seed(2))
        return [ShuffledFeatures(Features(values, images.labels), 20, 7, epoch) for epoch in range(EPOCHS)]
    return [views.Shuffled(images, 20, 7, epoch, augment=True) for epoch in range(EPOCHS)]


@pytest.fixture
def run(module, streams) -> Run:
    """Tune from the same seed each time; accuracies are scripted."""

    def tuned(seed: int = 1, **more: object) -> tuple[nn.Module, History]:
        torch.manual_seed(seed)
        settings = {"epochs": streams, "validate": Script([0.2, 0.5, 0.9, 0.1]), "lr": 0.01, **more}
        return tune(module, **settings)

    return tuned


class Script:
    """Answers with values in turn, keeps what it is asked about, and dies after so many answers."""

    def __init__(self, values: list[float], dies_after: int | None = None) -> None:
        self.values = values
        self.dies_after = dies_after
        self.seen: list[dict[str, Tensor]] = []

    def __call__(self, model: nn.Module) -> float:
        if len(self.seen) == self.dies_after:
            raise KeyboardInterrupt
        self.seen.append(copy.deepcopy(model.state_dict()))
        return self.values[len(self.seen) - 1]


def content(model: nn.Module) -> bytes:
    return tensors_to_bytes(model.state_dict())


def test_a_copy_is_trained_and_the_given_module_stays(module, run):
    before = state_digest(module.state_dict())
    tuned, history = run()
    assert tuned is not module
    assert state_digest(module.state_dict()) == before
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not any(each.training for each in (*module.modules(), *tuned.modules()))
    assert (len(history.loss), history.accuracy, history.watched) == (EPOCHS, [0.2, 0.5, 0.9, 0.1], [])


@pytest.mark.parametrize("frozen", [True, False])
def test_every_parameter_moves_and_the_indices_stay(module, run, frozen):
    module.requires_grad_(not frozen)
    tuned, _ = run()
    before = dict(module.named_parameters())
    assert [name for name, value in tuned.named_parameters() if torch.equal(value, before[name])] == []
    assert all(parameter.requires_grad is not frozen for parameter in module.parameters())
    head = next(each for each in tuned.modules() if isinstance(each, DecomposedHead))
    assert torch.equal(head.indices, INDICES)


def test_training_lowers_the_loss(run, streams):
    _, history = run(epochs=streams[:1] * 40, validate=lambda _model: 0.5)
    assert sum(history.loss[-3:]) / 3 < history.loss[0] - 0.05


def test_the_first_step_of_adam_is_as_long_as_the_learning_rate(module, run, streams):
    one_batch = [next(iter(streams[0]))]
    tuned, _ = run(epochs=[one_batch], lr=1e-3)
    moved = [
        (value - before).abs().max().item()
        for value, before in zip(tuned.parameters(), module.parameters(), strict=True)
    ]
    assert [*moved[-2:], max(moved)] == pytest.approx([1e-3] * 3, rel=0.02)


def test_what_comes_back_is_the_best_epoch_by_validation_and_not_by_what_is_watched(run):
    validate, watch = Script([0.2, 0.9, 0.9, 0.1]), Script([0.8, 0.1, 0.2, 0.9])
    tuned, history = run(validate=validate, watch=watch)
    digests = [state_digest(state) for state in validate.seen]
    assert len(set(digests)) == EPOCHS
    assert [state_digest(state) for state in watch.seen] == digests
    assert state_digest(tuned.state_dict()) == digests[1]
    assert history.watched == watch.values


def test_same_seed_gives_the_same_bytes_and_another_others(run):
    (first, one), (second, two), (other, _) = run(), run(), run(seed=2)
    assert content(first) == content(second)
    assert one == two
    assert content(other) != content(first), "else a resumed run would say nothing about random states"


def test_watching_changes_nothing(run):
    assert content(run()[0]) == content(run(watch=Script([0.0] * EPOCHS))[0])


@pytest.mark.parametrize("place", ["validate", "watch"])
@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_an_interrupted_and_resumed_run_gives_the_same_bytes_and_history(run, tmp_path: Path, place, epoch):
    values = {"validate": [0.2, 0.5, 0.9, 0.1], "watch": [0.3, 0.1, 0.7, 0.4]}
    whole, history = run(**{name: Script(given) for name, given in values.items()})
    path = tmp_path / "checkpoint.pt"
    dying = {name: Script(given, epoch if name == place else None) for name, given in values.items()}
    with pytest.raises(KeyboardInterrupt):
        run(**dying, checkpoint=Checkpoint(path, {}, resume=False))
    assert path.exists() == (epoch > 0)
    remaining = {name: Script(given[epoch:]) for name, given in values.items()}
    seed = 5 if epoch else 1  # a run that resumes starts from other random states
    resumed, again = run(seed, **remaining, checkpoint=Checkpoint(path, {}, resume=True))
    assert content(resumed) == content(whole)
    assert again == history
    assert history.watched == values["watch"]
    assert [len(script.seen) for script in remaining.values()] == [EPOCHS - epoch] * 2, "no epoch is trained again"
