"""Fine-tuning: a copy trains whole, the best epoch is kept, and an interruption leaves no trace."""

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
from deeppatch.metrics import accuracy
from deeppatch.retrain.finetune import finetune, fit_all
from deeppatch.training import History, SGDSettings, predict

SETTINGS = SGDSettings(lr=0.05)


@pytest.fixture
def run(tiny, images, blur) -> Callable[..., tuple[nn.Module, History]]:
    """Fine-tune a tiny network that draws random numbers while it trains, from the same seed each time."""
    tiny.network.fc = nn.Sequential(nn.Dropout(0.3), tiny.network.fc)
    tiny.eval()
    stream = [views.Shuffled(images, 20, 7, epoch, corruption=blur) for epoch in range(4)]
    val = views.append(images, blur, 128)

    def honest(model: nn.Module) -> float:
        return accuracy(predict(model, val), val.labels)

    def train(
        validate: Callable[[nn.Module], float] = honest, seed: int = 1, **more: object
    ) -> tuple[nn.Module, History]:
        torch.manual_seed(seed)
        given = {"epochs": stream, "settings": SETTINGS, **more}
        return fit_all(tiny, given.pop("epochs"), validate, **given)

    return train


def content(model: nn.Module) -> bytes:
    return tensors_to_bytes(model.state_dict())


def test_a_copy_is_trained_and_the_given_model_stays(tiny, run):
    for training in (False, True):
        tiny.train(training)
        before = state_digest(tiny.state_dict())
        tuned, _ = run()
        assert tuned is not tiny
        assert state_digest(tiny.state_dict()) == before
        assert all(parameter.grad is None for parameter in tiny.parameters())
        assert all(module.training is training for module in tiny.modules())
        assert state_digest(tuned.state_dict()) != before
        assert not any(module.training for module in tuned.modules()), "what comes back is ready to be evaluated"


def test_all_parameters_and_statistics_move_and_the_normalisation_stays(tiny, run):
    tuned, _ = run()
    before = dict(tiny.named_parameters())
    assert [name for name, value in tuned.named_parameters() if torch.equal(value, before[name])] == []
    for name in ("bn1", "bn2"):
        ours, theirs = tuned.get_submodule(f"network.{name}"), tiny.get_submodule(f"network.{name}")
        assert not torch.equal(ours.running_mean, theirs.running_mean)
        assert not torch.equal(ours.running_var, theirs.running_var)
    assert state_digest(tuned.normalize.state_dict()) == state_digest(tiny.normalize.state_dict())


def test_a_frozen_model_is_tuned_whole_and_stays_frozen(tiny, run):
    for parameter in tiny.parameters():
        parameter.requires_grad_(False)
    tuned, _ = run()
    before = dict(tiny.named_parameters())
    assert all(not torch.equal(value, before[name]) for name, value in tuned.named_parameters())
    assert not any(parameter.requires_grad for parameter in tiny.parameters())


def test_training_lowers_the_loss(run, images):
    everything = [(images.pixels.float() / 255, images.labels)]
    _, history = run(lambda _: 0.5, epochs=[everything] * 30)
    assert sum(history.loss[-3:]) / 3 < history.loss[0] - 0.01


@pytest.mark.parametrize(
    ("accuracies", "best"), [([0.2, 0.9, 0.5, 0.1], 1), ([0.3, 0.7, 0.7, 0.7], 1), ([0.1, 0.2, 0.3, 0.4], 3)]
)
def test_model_is_that_of_the_best_epoch(run, accuracies, best):
    seen: list[dict[str, Tensor]] = []

    def scripted(model: nn.Module) -> float:
        seen.append(copy.deepcopy(model.state_dict()))
        return accuracies[len(seen) - 1]

    tuned, history = run(scripted)
    assert history.best == best
    digests = [state_digest(state) for state in seen]
    assert len(set(digests)) == 4
    assert state_digest(tuned.state_dict()) == digests[best]


def test_same_seed_gives_the_same_bytes(run):
    (first, one), (second, two) = run(), run()
    assert content(first) == content(second)
    assert one == two


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_interrupted_and_resumed_training_gives_the_same_bytes(run, tmp_path: Path, epoch):
    whole, history = run()
    path, calls = tmp_path / "checkpoint.pt", []

    def interrupted(model: nn.Module) -> float:
        calls.append(1)
        if len(calls) > epoch:
            raise KeyboardInterrupt
        return history.accuracy[len(calls) - 1]

    with pytest.raises(KeyboardInterrupt):
        run(interrupted, checkpoint=Checkpoint(path, {}, resume=False))
    assert path.exists() == (epoch > 0)
    trained: list[int] = []

    def remaining(model: nn.Module) -> float:
        trained.append(1)
        return history.accuracy[epoch + len(trained) - 1]

    resumed, again = run(remaining, checkpoint=Checkpoint(path, {}, resume=True))
    assert content(resumed) == content(whole)
    assert again == history
    assert len(trained) == 4 - epoch, "epochs that are done are not trained again"


def test_training_draws_random_numbers(run):
    """Else the resumed run would say nothing about random states."""
    assert content(run(seed=2)[0]) != content(run(seed=1)[0])


def test_finetune_is_the_fit_on_the_same_epochs(tiny, run, images, blur):
    fitted, history = run()
    data = Data(images, images, images, tuple("abcde"))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    settings = {"epochs": 4, "lr": 0.05, "batch_size": 20, "seed": 7}
    tuned = finetune(tiny, data, blur, **settings)
    assert torch.equal(torch.get_rng_state(), before), "the caller's random state is restored"
    assert content(finetune(tiny, data, blur, **settings)) == content(tuned)
    torch.manual_seed(1)
    tuned = finetune(tiny, data, blur, reseed=False, **settings)
    assert content(tuned) == content(fitted)
    assert tuned.history == history
