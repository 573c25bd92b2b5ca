"""What a patch is trained on: images at random levels, clean ones, or the worst versions that Sensei's search finds."""

from __future__ import annotations

import pytest
import torch

from deeppatch.artifacts import Checkpoint
from deeppatch.data.corruptions import Spatial
from deeppatch.data.dataset import Data
from deeppatch.data.epochs import ChosenEpochs, StreamInputs, clean_stream, degraded_epochs
from deeppatch.data.images import to_float
from deeppatch.errors import UserError
from deeppatch.patching.training import train_patch
from deeppatch.retrain.sensei import SenseiStream

CHANNELS = {"conv2": [1, 3], "conv3": [0, 4]}
TRAINED = {"epochs": 2, "lr": 0.05, "batch_size": 20}


@pytest.fixture
def train(tiny, images, blur):
    some, few = images.take(torch.arange(40)), images.take(torch.arange(40, 50))
    data = Data(some, few, few, tuple("abcde"))

    def trained(corruption=blur, **options):
        return train_patch(tiny, data, corruption, CHANNELS, **{**TRAINED, **options})

    return trained


def test_a_stream_that_changes_nothing_leaves_the_same_patch_and_others_another(train):
    def same(inputs):
        return ChosenEpochs(inputs.plain)

    usual = train().to_bytes()
    assert train(stream=same).to_bytes() == usual
    assert train(stream=SenseiStream(popsize=1)).to_bytes() == usual
    others = [train(stream=each).to_bytes() for each in (clean_stream, SenseiStream())]
    assert len({usual, *others}) == 3


def test_clean_epochs_are_as_long_as_the_plain_ones_and_clean(tiny, images, blur):
    plain = degraded_epochs(images, blur, epochs=0, passes=100, batch_size=20, seed=3)
    found = clean_stream(StreamInputs(tiny, images, blur, plain, batch_size=20, seed=3)).epochs
    assert [each.sizes for each in found] == [each.sizes for each in plain] == [[20, 20, 20], [20, 20]]
    known = to_float(images.pixels)
    for pixels, labels in [batch for epoch in found for batch in epoch]:
        same = (pixels.unsqueeze(1) == known).flatten(2).all(2)
        assert (same.sum(1) == 1).all()
        assert torch.equal(images.labels[same.int().argmax(1)], labels)


def test_the_search_sees_the_patched_network_and_a_killed_run_goes_on(train, tmp_path, monkeypatch):
    networks = []

    def noting(inputs):
        networks.append(inputs.network)
        return SenseiStream(popsize=4)(inputs)

    whole = train(Spatial(), stream=noting)
    assert "original" in str(networks[0]), "the copy with its units, not the base"
    save = Checkpoint.save

    def interrupted(checkpoint, state):
        save(checkpoint, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Checkpoint, "save", interrupted)
        train(Spatial(), stream=noting, checkpoint=Checkpoint(tmp_path / "c.pt", {}, False))
    again = train(Spatial(), stream=noting, checkpoint=Checkpoint(tmp_path / "c.pt", {}, True))
    assert again.to_bytes() == whole.to_bytes()


@pytest.mark.parametrize("given", [{"popsize": 0}, {"crossover_prob": 2}, {"robust_threshold": 0}])
def test_numbers_of_the_search_out_of_range_are_one_line(given):
    with pytest.raises(UserError) as error:
        SenseiStream(**given)
    assert next(iter(given)) in str(error.value)
