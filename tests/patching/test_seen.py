"""Images that a network was trained on are told from others, and others are not accused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deeppatch.artifacts import state_digest
from deeppatch.data.images import Images
from deeppatch.errors import UserError
from deeppatch.patching.seen import apart, compare_seen


class Memory(nn.Module):
    """Answers with the class that the first pixel holds, as surely as the second says."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        guess = (10 * pixels[:, 0, 0, 0]).round().long()
        return nn.functional.one_hot(guess, 10) * pixels[:, 0, 0, 1:2] * 10 * self.scale


def images(right: int, wrong: int, sure: torch.Tensor) -> Images:
    """Images on which `Memory` is right and wrong so often, and as sure as that."""
    labels = torch.arange(right + wrong) % 10
    guesses = torch.where(torch.arange(right + wrong) < right, labels, (labels + 1) % 10)
    pixels = torch.zeros(right + wrong, 3, 2, 2)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = guesses / 10, sure
    return Images(pixels, labels)


def alike(count: int, seed: int) -> torch.Tensor:
    return 0.3 + 0.3 * torch.rand(count, generator=torch.Generator().manual_seed(seed))


def test_seen_images_are_told_by_accuracy():
    """The figures of published checkpoints: 100.00 % on val, 92.63 % on test."""
    model = Memory()
    before = state_digest(model.state_dict())
    found = compare_seen(model, images(1000, 0, alike(1000, 0)), images(926, 74, alike(1000, 1)))
    assert found.seen
    assert (found.accuracy, found.unseen_accuracy) == (1.0, 0.926)
    assert found.p_accuracy < 1e-15
    assert found.p_confidence > 0.001
    assert state_digest(model.state_dict()) == before
    assert model.training
    assert found.facts()["seen"] is True


def test_seen_images_are_told_by_confidence():
    found = compare_seen(Memory(), images(93, 7, alike(100, 0) + 0.2), images(93, 7, alike(100, 1)))
    assert found.seen
    assert found.p_confidence < 1e-6
    assert found.p_accuracy > 0.3
    assert found.confidence > found.unseen_confidence


def test_a_published_accuracy_can_stand_for_other_images():
    model = Memory()
    found = compare_seen(model, images(1000, 0, alike(1000, 0)), 0.9263)
    assert found.seen
    assert (found.unseen_accuracy, found.unseen_confidence, found.p_confidence) == (0.9263, None, None)
    assert not compare_seen(model, images(93, 7, alike(100, 0)), 0.9263).seen


def test_networks_that_have_seen_neither_are_not_accused():
    draw, model = torch.Generator().manual_seed(0), Memory()
    accused = 0
    for seed in range(200):
        rights = [int((torch.rand(150, generator=draw) < 0.92).sum()) for _ in range(2)]
        parts = [images(right, 150 - right, alike(150, 7 * seed + n)) for n, right in enumerate(rights)]
        accused += compare_seen(model, *parts).seen
    assert accused <= 1
    assert not compare_seen(model, images(80, 20, alike(100, 0) - 0.1), images(95, 5, alike(100, 1))).seen, "worse"


def test_images_that_are_set_apart_are_in_one_part_only():
    everything = images(40, 0, alike(40, 0))
    chosen, others = apart(everything, 15, seed=3)
    rows = [[tuple(each.flatten().tolist()) for each in part.pixels] for part in (chosen, others, everything)]
    assert (len(chosen), len(others)) == (15, 25)
    assert sorted(rows[0] + rows[1]) == sorted(rows[2])
    assert torch.equal(apart(everything, 15, seed=3)[0].pixels, chosen.pixels)
    assert not torch.equal(apart(everything, 15, seed=4)[0].pixels, chosen.pixels)
    for count in (0, 40):
        with pytest.raises(UserError, match=f"{count} of 40 images cannot be set apart"):
            apart(everything, count)
