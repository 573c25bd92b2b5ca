"""The published settings of the genetic search, each as the specification's table has it (section 2.3)."""

from __future__ import annotations

import pytest
import torch

from deeppatch.modular import composition
from deeppatch.modular.layers import find_layers
from deeppatch.modular.presets import PRESETS, thresholds
from deeppatch.zoo.architectures import ARCHITECTURES

SEVEN = ["conv_0", "conv_1", "conv_2", "conv_3", "conv_4", "conv_5", "conv_6"]
THREE, FIVE = "conv_1.0+conv_3.0", "conv_5.0+conv_7.0"
TEN = {2: 0.95, 4: 0.95, 8: 0.85, 10: 0.80}
# sensitive layers, their ratios, those of the others, population, generations, mutation, gamma, thresholds
PUBLISHED = {
    "simcnn-cifar10": (SEVEN, (0.6, 0.7, 0.8), (0.4, 0.5, 0.6, 0.7), 100, 200, 0.05, 0.90, TEN),
    "simcnn-svhn": (SEVEN, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3, 0.4), 100, 200, 0.10, 0.95, TEN),
    "simcnn-svhn_5": (SEVEN[:5], (0.4, 0.5, 0.6, 0.7), (0.3, 0.4), 50, 100, 0.10, 0.95, {2: 0.95, 4: 0.90, 5: 0.85}),
    "rescnn-cifar10": (["conv_0.0", THREE, "conv_4.0", FIVE], (0.5, 0.6, 0.7), (0.2, 0.3, 0.4), 100, 200, 0.05, 0.90,
                       TEN),
    "rescnn-svhn": ([THREE, "conv_4.0", FIVE], (0.3, 0.4, 0.5), (0.2, 0.3), 100, 200, 0.10, 0.90,
                    {2: 0.95, 4: 0.95, 8: 0.90, 10: 0.85}),
    "rescnn-svhn_5": (["conv_4.0", FIVE], (0.3, 0.4, 0.5), (0.2, 0.3), 50, 100, 0.10, 0.90,
                      {2: 0.95, 4: 0.90, 5: 0.85}),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_preset_is_the_table_s(name):
    preset = PRESETS[name]
    with torch.device("meta"):  # shapes without values
        layers = find_layers(ARCHITECTURES[name.partition("-")[0]](10).eval(), torch.empty(1, 3, 32, 32))
    found = (
        [layers[place].name for place in preset.sensitive], preset.ratios, preset.insensitive_ratios, preset.population,
        preset.generations, preset.mutation, preset.gamma, preset.thresholds,
    )  # fmt: skip
    assert found == PUBLISHED[name]
    assert (preset.alpha, preset.parents, preset.kept) == (0.9, 50, 20)
    assert (preset.size, preset.keep_ratio) == (0, False)
    assert thresholds(preset, max(preset.thresholds), 0.5) == preset.thresholds


def test_there_are_the_published_presets_and_one_that_is_derived():
    assert PRESETS.keys() == {"auto", *PUBLISHED}
    assert (composition.MIN_KEPT, composition.MAX_KEPT) == (50, 500)


def test_the_derived_preset_weighs_size_and_keeps_ratios():
    auto = PRESETS["auto"]
    assert auto.sensitive is None
    assert auto.size > 0
    assert auto.keep_ratio
    assert thresholds(auto, 10, 0.9) == pytest.approx(dict.fromkeys((2, 4, 8, 10), 0.85))
