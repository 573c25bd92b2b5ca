"""The genetic search on a problem whose best answer is known: each class needs its own kernels and no others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deeppatch.artifacts import Checkpoint
from deeppatch.modular.genetic import Search, _move, first
from deeppatch.modular.genome import Genome
from deeppatch.modular.presets import PRESETS, Preset, thresholds
from deeppatch.runtime import entropy

CLASSES, KERNELS, SAMPLES = 4, 16, 80
PRESET = Preset((0,), (0.6, 0.8), (0.4, 0.6), population=12, generations=6, mutation=0.1)


class Problem:
    """Logits that grow with the number of a class's own kernels that a candidate keeps; runs are counted."""

    def __init__(self) -> None:
        torch.manual_seed(8)
        self.labels = torch.arange(SAMPLES) % CLASSES
        self.noise = torch.randn(CLASSES, SAMPLES)
        self.calls: list[tuple[int, int]] = []

    def evaluate(self, number, masks):
        self.calls.append((number, len(masks[0])))
        own = sum(mask[:, number::CLASSES].sum(1) for mask in masks)
        return own.unsqueeze(1) * (self.labels == number) + self.noise[number]

    def search(self, preset=PRESET, seed=3):
        genomes = [
            Genome([np.random.default_rng(number).permutation(KERNELS) for _ in range(2)]) for number in range(4)
        ]
        return Search(
            genomes, self.evaluate, lambda masks: masks[0].float().mean().item(), self.labels, torch.ones(2 * KERNELS),
            preset, preset.sensitive, thresholds(preset, CLASSES, 0.9), seed,
        )  # fmt: skip


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one[0], two[0], strict=True)) and one[1] == two[1]


def test_the_same_seed_gives_the_same_modules_and_another_one_others():
    first = Problem().search().run(3)
    assert same(first, Problem().search().run(3))
    assert not same(first, Problem().search(seed=4).run(3))


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [0, 2, 5])
def test_a_killed_search_goes_on_as_if_it_had_never_stopped(tmp_path, at):
    whole = Problem().search().run(6)
    checkpoint = Checkpoint(tmp_path / "checkpoint.pt", {}, resume=False)
    save = checkpoint.save
    saves = []

    def killing(state):
        save(state)
        saves.append(state)
        if len(saves) == at + 1:
            raise Killed

    checkpoint.save = killing
    with pytest.raises(Killed):
        Problem().search().run(6, checkpoint=checkpoint)
    resumed = Problem().search().run(6, checkpoint=Checkpoint(tmp_path / "checkpoint.pt", {}, resume=True))
    for record in (whole[1], resumed[1]):
        record.evaluated = []  # what lives on is run once more after an interruption
    assert same(whole, resumed)


def test_what_lives_on_is_not_run_again():
    problem = Problem()
    search = problem.search()
    _, record = search.run(5)
    counts = [count for _, count in problem.calls]
    assert sum(counts) == sum(record.evaluated)
    assert record.evaluated[0] <= CLASSES * PRESET.population
    children = CLASSES * (PRESET.population - PRESET.kept)
    assert all(count <= children for count in record.evaluated[1:])
    assert sum(record.evaluated) >= CLASSES * PRESET.population + 4 * children  # equal children are rare


def test_the_first_population_has_the_shares_of_its_preset_and_differs_by_class():
    search = Problem().search()
    populations = [
        first(genome, search.preset, search.sensitive, np.random.default_rng(number))
        for number, genome in enumerate(search.genomes)
    ]
    for bits in populations:
        sensitive, tough = np.split(bits, 2, axis=1)
        assert set(sensitive.sum(1)) <= {6, 8}
        assert set(tough.sum(1)) <= {4, 6}
        assert sensitive[:, 0].mean() > sensitive[:, -1].mean(), "important groups are likelier"
    assert not np.array_equal(populations[0], populations[1])


def test_breeding_keeps_the_fittest_and_redraws_an_exact_share_of_a_child():
    preset = Preset((0,), (0.6,), (0.4,), population=12, mutation=0.0)
    search = Problem().search(preset)
    ranked = np.random.default_rng(1).random((12, 20)) < 0.5
    bred = search._bred(0, ranked, 0)
    assert np.array_equal(bred[: preset.kept], ranked[: preset.kept])
    for j, child in enumerate(bred[preset.kept :]):
        one, two = ranked[j % preset.parents], ranked[(j + 1) % preset.parents]
        assert any(np.array_equal(child, np.concatenate([one[:cut], two[cut:]])) for cut in range(20))
    mutated = Problem().search(Preset((0,), (0.6,), (0.4,), population=12, mutation=0.25))._bred(0, ranked, 0)
    changed = (mutated[preset.kept :] != bred[preset.kept :]).sum(1)
    assert changed.max() <= 5
    assert changed.sum() > 0


def test_a_mutation_that_keeps_the_ratio_moves_bits_within_their_layer():
    draw = entropy(1)
    row = draw.random(30) < 0.5
    before = row.copy()
    _move(row, np.arange(6), [10, 20], draw)
    assert row[:10].sum() == before[:10].sum()
    assert row[10:].sum() == before[10:].sum()
    assert not np.array_equal(row, before)


def test_accuracy_held_out_chooses_and_not_the_one_that_was_searched():
    search = Problem().search()
    _, record = search.run(4)
    values = [0.9 * h + 0.1 * u for h, u in zip(record.holdout, record.unlike, strict=True)]
    assert record.value == pytest.approx(values)
    assert record.best == values.index(max(values))


def test_a_search_without_progress_ends_early():
    _, record = Problem().search().run(50, patience=2)
    assert len(record.value) - 1 - record.best == 2 or len(record.value) == 51


def test_the_published_presets():
    assert {name for name in PRESETS if name != "auto"} == {
        f"{net}-{data}" for net in ("simcnn", "rescnn") for data in ("cifar10", "svhn", "svhn_5")
    }
    assert (PRESETS["simcnn-cifar10"].parents, PRESETS["simcnn-cifar10"].kept) == (50, 20)
    assert (PRESETS["simcnn-svhn_5"].parents, PRESETS["simcnn-svhn_5"].kept) == (50, 20)
    assert thresholds(PRESETS["rescnn-svhn"], 10, 0.5) == {2: 0.95, 4: 0.95, 8: 0.90, 10: 0.85}
    assert thresholds(PRESETS["auto"], 10, 0.9) == pytest.approx(dict.fromkeys((2, 4, 8, 10), 0.85))
