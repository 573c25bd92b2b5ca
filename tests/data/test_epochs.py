"""Epochs that are cut to a number of passes: the same batches in the same order, only fewer."""

from __future__ import annotations

import pytest
import torch

from deeppatch.data.epochs import FirstBatches, count_passes, degraded_epochs
from deeppatch.errors import UserError


def cut(images, blur, passes, batch_size=16):
    return degraded_epochs(images, blur, epochs=1, passes=passes, batch_size=batch_size, seed=3)


@pytest.mark.parametrize("passes", [16, 31, 59, 60, 75, 76, 91, 120, 200])
def test_batches_are_the_first_whole_ones_that_the_number_allows(images, blur, passes):
    whole = [batch for epoch in degraded_epochs(images, blur, epochs=5, batch_size=16, seed=3) for batch in epoch]
    taken, seen = [], 0
    for batch in whole:
        if seen + len(batch[1]) > passes:
            break
        seen += len(batch[1])
        taken.append(batch)
    epochs = cut(images, blur, passes)
    found = [batch for epoch in epochs for batch in epoch]
    assert len(found) == len(taken) == sum(map(len, epochs))
    for (pixels, labels), (same, of_same) in zip(found, taken, strict=True):
        assert torch.equal(pixels, same)
        assert torch.equal(labels, of_same)
    assert [size for epoch in epochs for size in epoch.sizes] == [len(labels) for _, labels in taken]
    assert count_passes(epochs, validated=7).train == seen
    assert count_passes(epochs, validated=7).forward == 7 * len(epochs)


def test_passes_of_whole_epochs_are_these_epochs(images, blur):
    assert cut(images, blur, 180) == degraded_epochs(images, blur, epochs=3, batch_size=16, seed=3)


@pytest.mark.parametrize("passes", [-1, 0, 1, 15])
def test_fewer_than_a_batch_are_refused(images, blur, passes):
    with pytest.raises(UserError, match="passes: give at least the 16 images of a batch"):
        cut(images, blur, passes)


def test_shards_of_cut_epochs_are_cut_shards(images, blur):
    (epoch,) = cut(images, blur, 40)
    assert isinstance(epoch, FirstBatches)
    for index in range(2):
        pairs = zip(epoch.shard(index, 2), epoch.epoch.shard(index, 2), strict=False)
        assert [torch.equal(pixels, same) for (pixels, _), (same, _) in pairs] == [True, True]
