from __future__ import annotations

import numpy as np
import pytest
import torch

from deeppatch.modular.genome import Genome, group_sizes
from deeppatch.modular.layers import find_layers
from deeppatch.zoo.architectures import ARCHITECTURES


@pytest.mark.parametrize(
    ("kernels", "sizes"),
    [
        (64, [7] * 4 + [6] * 6),
        (128, [13] * 8 + [12] * 2),
        (256, [3] * 56 + [2] * 44),
        (512, [6] * 12 + [5] * 88),
        (8, [1] * 8),
    ],
)
def test_group_sizes_are_the_published_ones(kernels, sizes):
    assert group_sizes(kernels) == sizes


@pytest.mark.parametrize(("name", "bits"), [("simcnn", 940), ("rescnn", 630)])
def test_simcnn_has_940_bits_and_rescnn_630(name, bits):
    with torch.device("meta"):  # shapes without values
        layers = find_layers(ARCHITECTURES[name](10).eval(), torch.empty(1, 3, 32, 32))
    genome = Genome([np.random.default_rng(0).permutation(layer.kernels) for layer in layers])
    assert sum(genome.lengths) == bits
    assert all(mask.all() for mask in genome.decode(np.ones((2, bits), bool)))
    kept = genome.decode(np.zeros((1, bits), bool))
    for order, mask in zip(genome.orders, kept, strict=True):
        assert set(mask[0].nonzero()[0]) == set(order[: group_sizes(len(order))[0]]), "its most important group"


def test_a_bit_stands_for_its_group_in_order_of_importance():
    draw = np.random.default_rng(1)
    genome = Genome([draw.permutation(64), draw.permutation(128)])
    bits = draw.random((5, 20)) < 0.5
    for layer, (order, mask) in enumerate(zip(genome.orders, genome.decode(bits), strict=True)):
        for row in range(5):
            start = 0
            for group, size in enumerate(group_sizes(len(order))):
                assert (mask[row, order[start : start + size]] == bits[row, 10 * layer + group]).all()
                start += size


def test_a_layer_without_a_bit_keeps_its_most_important_group():
    genome = Genome([np.arange(64)[::-1], np.arange(64)])
    bits = np.zeros((1, 20), bool)
    bits[0, 15] = True
    first, second = genome.decode(bits)
    assert first.nonzero()[1].tolist() == list(range(57, 64))
    assert second.sum() == 6
    assert not bits[0, 0], "the chromosome is left as it was"
