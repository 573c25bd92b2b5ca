"""The worst of several versions: by level against a plain search, and by evolving settings of spatial parameters."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from deeppatch.data.corruptions import Spatial
from deeppatch.data.corruptions.spatial import BOUNDS, transformed
from deeppatch.data.views import Shuffled
from deeppatch.retrain.population import MUTATIONS, UNITS, Evolution, Population, parameters
from deeppatch.retrain.sensei import Searched, WorstLevel, losses_of, sensei

STEPS = list(MUTATIONS.values())


def loss_of(model, pixels, label):
    with torch.no_grad():
        return F.cross_entropy(model(pixels[None]), label[None]).item()


@pytest.fixture
def batch(images):
    return images.pixels[:20].float() / 255, images.labels[:20]


def test_each_image_gets_the_level_of_largest_loss(tiny, batch, blur):
    pixels, labels = batch
    search = WorstLevel(blur, lambda *images: losses_of(tiny, *images), 7, seed=1)
    tiny.train()  # the search is in eval mode, and puts the mode back
    found = search(torch.arange(20), pixels, labels, torch.zeros(20, dtype=torch.long), 0, 0)
    assert all(module.training for module in tiny.modules())
    tiny.eval()
    for number in range(20):
        versions = [blur(pixels[number : number + 1], level)[0] for level in range(7)]
        losses = [loss_of(tiny, version, labels[number]) for version in versions]
        assert loss_of(tiny, found[number], labels[number]) == pytest.approx(max(losses), rel=1e-5)
        assert torch.allclose(found[number], versions[losses.index(max(losses))], atol=1e-6)


def test_the_loss_never_falls_as_candidates_are_added_and_the_drawn_level_is_the_first(tiny, batch, blur):
    pixels, labels = batch
    levels = torch.arange(20) % 7
    before = torch.zeros(20)
    for count in range(1, 8):
        search = WorstLevel(blur, lambda *images: losses_of(tiny, *images), count, seed=1)
        candidates = search.of(levels, 2, 40)
        assert candidates.shape == (count, 20)
        assert all(len(set(column)) == count for column in candidates.T.tolist()), "no level twice"
        found = search(torch.arange(20), pixels, labels, levels, 2, 40)
        now = losses_of(tiny, found, labels)
        if count == 1:
            assert torch.equal(candidates[0], levels)
            assert torch.equal(found, blur(pixels, levels))
        assert (now >= before - 1e-6).all()
        before = now


def test_an_epoch_has_the_batches_of_fine_tuning(images, blur):
    seen = []

    def search(index, pixels, labels, levels, epoch, start):
        seen.append((index, levels, epoch, start))
        assert torch.equal(pixels, images.pixels[index].float() / 255)
        assert torch.equal(labels, images.labels[index])
        return blur(pixels, levels)

    epoch = Shuffled(images, 25, 7, 3, corruption=blur)
    for (pixels, labels), (ours, theirs) in zip(epoch, Searched(epoch, epoch.sizes, search), strict=True):
        assert torch.equal(ours, pixels)
        assert torch.equal(theirs, labels)
    assert [each[2:] for each in seen] == [(3, 0), (3, 25), (3, 50)]
    assert len(list(Searched(epoch, [25], search))) == 1


@pytest.mark.parametrize(
    ("options", "facts", "forward"),
    [
        ({}, {"search": "all levels", "candidates": 7}, 7 * 60 + 420),
        ({"popsize": 3}, {"search": "sampled levels", "candidates": 3}, 3 * 60 + 420),
        ({"popsize": 1}, {"search": "none", "candidates": 1}, 420),
    ],
)
def test_what_it_did_and_cost(tiny, data, blur, options, facts, forward):
    found = sensei(tiny, data, blur, epochs=1, batch_size=20, **options)
    assert found.facts == facts
    assert (found.passes.train, found.passes.forward) == (60, forward)


def of_size(size=10, *, losses=None, threshold=1e-3, crossover=0.4, severities=(1, 2, 3, 4, 5), images=20):
    def even(pixels, labels):
        return pixels.mean((1, 2, 3))

    evolution = Evolution(size, threshold, crossover, seed=5)
    return Population(images, Spatial(severities), losses or even, evolution, torch.device("cpu"))


def run(population, batch, epoch):
    pixels, labels = batch
    return population(torch.arange(len(labels)), pixels, labels, labels, epoch, 0)


def test_settings_are_within_bounds_of_the_highest_severity_and_the_first_is_the_identity(batch):
    population = of_size(severities=(1, 3))
    limits = [0.6 * bound for bound in BOUNDS.values()]
    first = population.first(500, torch.Generator().manual_seed(1))
    assert first.shape == (500, 10, 7)
    assert not first[:, 0].any()
    most = first.abs().amax((0, 1))
    assert torch.equal(most, population.bounds), "all values within the bounds occur"
    found = parameters(most.unsqueeze(0))[0].tolist()
    for value, limit, unit in zip(found, limits, UNITS.values(), strict=True):
        assert limit - unit < value <= limit + 1e-9
    assert of_size().bounds.tolist() == [30, 3, 3, 20, 10, 16, 8]
    assert torch.equal(transformed(batch[0], parameters(torch.zeros(20, 7))), batch[0])


@pytest.mark.parametrize("crossover", [0.0, 1.0], ids=["mutated", "crossed over"])
def test_children_stay_in_range_and_differ_from_what_is_known_and_from_each_other(crossover):
    population = of_size(crossover=crossover)
    generator = torch.Generator().manual_seed(3)
    known = population.first(300, generator)[:, 1:5]
    known[:, 0, 0] = 29
    children = population.children(known, torch.arange(300) % 2 == 0, generator)
    assert children.shape == (300, 6, 7)
    assert (children.abs() <= population.bounds).all()
    for old, new in zip(known.tolist(), children.tolist(), strict=True):
        assert len({*map(tuple, old), *map(tuple, new)}) == 4 + 6


def test_a_mutation_changes_at_most_half_of_the_genes_by_a_step_or_the_sign():
    population = of_size()
    parent = torch.tensor([[10, 1, -1, 3, 5, -7, 4]]).expand(400, -1)
    doubled = torch.arange(400) % 2 == 1
    children = population.mutated(parent, doubled, torch.Generator().manual_seed(3))
    changed = children != parent.unsqueeze(1)
    assert changed.sum(2).max() == 4
    for twice in (False, True):
        for gene, once in enumerate(STEPS):
            step = 2 * once if twice and gene in (0, 3) else once
            value, bound = parent[0, gene].item(), population.bounds[gene].item()
            allowed = {max(-bound, min(bound, each)) for each in (value + step, value - step, -value, value)}
            assert {*children[doubled == twice][:, :, gene].unique().tolist()} == allowed


def test_crossing_over_takes_genes_of_the_worst_and_of_the_one_that_differs_most():
    population = of_size()
    known = torch.tensor([[[1] * 7, [1] * 6 + [2], [3] * 7, [1, 4, 4, 4, 4, 4, 4]]])
    children = population.crossed(known, torch.Generator().manual_seed(3))[0]
    assert {*children.flatten().tolist()} == {1, 3}
    assert len({*map(tuple, children.tolist())}) == 6
    assert all(1 in child and 3 in child for child in children.tolist()), "neither none nor all genes"


def test_the_worst_four_are_kept_in_order_and_the_worst_is_trained_on(tiny, batch):
    population = of_size(losses=lambda *images: losses_of(tiny, *images))
    pixels, labels = batch
    generator = torch.Generator().manual_seed(3)
    candidates = population.first(20, generator)
    population._keep(torch.arange(20), candidates, pixels, labels)
    for number in range(20):
        versions = transformed(pixels[number].expand(10, -1, -1, -1), parameters(candidates[number]))
        losses = [loss_of(tiny, version, labels[number]) for version in versions]
        order = sorted(range(10), key=lambda place: -losses[place])[:4]
        assert population.settings[number].tolist() == candidates[number][order].tolist()
        assert population.worst[number].item() == pytest.approx(max(losses), rel=1e-4)
    found = run(population, batch, 1)
    assert torch.equal(found, transformed(pixels, parameters(population.settings[:, 0])))


def test_sixteen_are_evaluated_first_then_ten_and_a_robust_image_not_until_the_epoch_after(batch):
    seen = []

    def losses(pixels, labels):
        seen.append(labels.tolist())
        return torch.where(labels == 3, 1e-4, 1.0)

    population = of_size(losses=losses)
    labels = batch[1].tolist()
    for epoch, (count, evaluated) in enumerate(
        [(16, labels), (10, [each for each in labels if each != 3]), (10, labels), (10, [e for e in labels if e != 3])]
    ):
        seen.clear()
        before, kept = population.evaluated, population.settings[batch[1] == 3].clone()
        run(population, batch, epoch)
        assert seen == [evaluated] * count
        assert population.evaluated - before == count * len(evaluated)
        if epoch == 1:
            assert torch.equal(population.settings[batch[1] == 3], kept), "what is robust keeps its setting"


def test_the_population_moves_on_and_its_state_is_all_of_it(batch):
    population, other = of_size(), of_size()
    run(population, batch, 0)
    first = population.settings.clone()
    other.load_state_dict({name: torch.clone(v) if name != "evaluated" else v
                           for name, v in population.state_dict().items()})  # fmt: skip
    one, two = run(population, batch, 1), run(other, batch, 1)
    assert torch.equal(one, two)
    assert not torch.equal(population.settings, first)
    assert population.evaluated == other.evaluated == 20 * 26


def test_spatial_transformations_evolve(tiny, data):
    found = sensei(tiny, data, Spatial(), epochs=2, batch_size=20)
    assert found.facts == {"search": "genetic", "candidates": 10, "robust_percent": 0.0}
    assert found.passes.forward == 60 * (16 + 10) + 2 * 360
