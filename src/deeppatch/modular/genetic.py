"""The genetic search: a population of candidate modules for each class, rated by their compositions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deeppatch.artifacts import Checkpoint
from deeppatch.modular.candidate_logits import CandidateLogits, Evaluate
from deeppatch.modular.composition import Candidates, FitnessWeights, Rating, beam_search, dissimilarity
from deeppatch.modular.genome import Bits, Genome
from deeppatch.modular.presets import Preset
from deeppatch.progress import info, track
from deeppatch.runtime import numpy_generator

# the kinds of what a checkpoint of the search holds
STATE = {
    "record": {str: [(int, float)]}, "weight": float, "winners": [int], "population": [Tensor], "best": [Tensor],
    "candidates": {str: object},
}  # fmt: skip


@dataclass
class SearchRecord:
    """Measurements of the fittest modules of each generation, the winners.

    Args:
        search: The accuracy of their composition, in [0, 1], on the images that define the fitness.
        holdout: The same on other images, by which the best generation is chosen.
        dissimilarity: Their mean dissimilarity.
        kept: The mean share of kernels that they keep.
        evaluated: The number of new candidates.
        passes: The number of images that candidates ran on, summed over candidates.
        value: The value by which the best generation is chosen: accuracy, dissimilarity and size, weighted.
    """

    search: list[float] = field(default_factory=list)
    holdout: list[float] = field(default_factory=list)
    dissimilarity: list[float] = field(default_factory=list)
    kept: list[float] = field(default_factory=list)
    evaluated: list[int] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    value: list[float] = field(default_factory=list)

    @property
    def best(self) -> int:
        """Return the earliest generation of highest value."""
        return self.value.index(max(self.value))


@dataclass
class PopulationSearch:
    """The genetic search over N classes.

    Args:
        genomes: The genome of each class.
        evaluate: Runs candidates on images.
        validate: Returns the accuracy, in [0, 1], of N modules, (N, kernels) by layer, on held-out images.
        labels: The labels (S,) of the images that `evaluate` runs candidates on.
        weights: The number of convolutions that each kernel belongs to, (kernels,).
        preset: The settings of the search.
        sensitive: The indices of the sensitive layers.
        thresholds: By number of classes, the accuracy from which compositions are kept.
        seed: The seed of all random choices.
    """

    genomes: Sequence[Genome]
    evaluate: Evaluate
    validate: Callable[[Sequence[Tensor]], float]
    labels: Tensor
    weights: Tensor
    preset: Preset
    sensitive: Sequence[int]
    thresholds: dict[int, float]
    seed: int

    def run(
        self, generations: int, *, patience: int | None = None, checkpoint: Checkpoint | None = None
    ) -> tuple[list[Tensor], SearchRecord]:
        """Run the search, and return the best generation's masks, (N, kernels) by layer, and the measurements.

        It ends early after `patience` generations without a better one. With a checkpoint every generation is saved,
        and a resumed search has the same result as one without interruption.
        """
        record, weight = SearchRecord(), self.preset.alpha
        population = [
            initial_population(genome, self.preset, self.sensitive, numpy_generator(self.seed, "first", label))
            for label, genome in enumerate(self.genomes)
        ]
        winners: list[int] | None = None
        best = population
        candidates = CandidateLogits(self.evaluate, self.labels, len(self.genomes))
        saved = checkpoint.load(**STATE) if checkpoint else None
        if saved and checkpoint:
            with checkpoint.undamaged():
                record, weight, winners = SearchRecord(**saved["record"]), saved["weight"], saved["winners"]
                population = [part.numpy() for part in saved["population"]]
                best = [part.numpy() for part in saved["best"]]
                candidates.load(saved["candidates"])
            info(f"search: resumed after generation {len(record.value) - 1}")
        for generation in track(range(len(record.value), generations + 1), generations + 1, "generations"):
            if patience and record.value and generation - 1 - record.best >= patience:
                info(f"search: nothing better for {patience} generations")
                break
            ranked, accuracy = self._rate(population, candidates, generation, weight, winners, record)
            weight = self.preset.alpha + max(0.0, self.preset.gamma - accuracy)
            if record.best == generation:
                best = [bits[ranks[:1]] for bits, ranks in zip(population, ranked, strict=True)]
            search, held_out = 100 * record.search[-1], 100 * record.holdout[-1]
            info(
                f"generation {generation}: composed accuracy {search:.2f} % searched, {held_out:.2f} % held out, "
                f"{100 * record.kept[-1]:.1f} % of kernels kept"
            )
            population = [
                self._next_generation(label, bits[ranked[label]], generation) for label, bits in enumerate(population)
            ]
            winners = [0] * len(population)
            if checkpoint:
                checkpoint.save(
                    {
                        "record": asdict(record),
                        "weight": weight,
                        "winners": winners,
                        "candidates": candidates.state(),
                        "population": [torch.from_numpy(bits) for bits in population],
                        "best": [torch.from_numpy(bits) for bits in best],
                    }
                )
        masks = [genome.decode(bits[:1]) for genome, bits in zip(self.genomes, best, strict=True)]
        return [torch.from_numpy(np.concatenate(rows)) for rows in zip(*masks, strict=True)], record

    def _rate(
        self,
        population: list[Bits],
        candidates: CandidateLogits,
        generation: int,
        weight: float,
        winners: list[int] | None,
        record: SearchRecord,
    ) -> tuple[list[NDArray[np.int64]], float]:
        """Rank the candidates of each class, fittest first, measure the winners, and return the best accuracy."""
        masks = [
            [torch.from_numpy(mask).to(self.labels.device) for mask in genome.decode(bits)]
            for genome, bits in zip(self.genomes, population, strict=True)
        ]
        keys = [[row.tobytes() for row in np.packbits(bits, axis=1)] for bits in population]
        before = candidates.passes
        record.evaluated.append(candidates.set_population(keys, masks))
        logits, kernels = candidates.logits, torch.stack([torch.cat(rows, 1) for rows in masks])
        classes, count = kernels.shape[:2]
        flat = kernels.flatten(0, 1)
        dissimilarities = dissimilarity(flat, self.weights).view(classes, count, classes, count)
        shares = (flat.float() @ self.weights / self.weights.sum()).view(classes, count)
        order = numpy_generator(self.seed, "order", generation).permutation(classes).tolist()
        rating = Rating(FitnessWeights(weight, 1 - self.preset.alpha, self.preset.size), self.thresholds, winners)
        fitness, accuracy = beam_search(
            Candidates(logits, self.labels, dissimilarities, shares), order, rating, candidates.compute
        )
        ranked = fitness.ranked()
        tops = ranked[:, 0]
        rows = torch.arange(classes, device=tops.device)
        for label in range(classes):
            candidates.compute(label, tops[label : label + 1], range(classes))
        record.passes.append(candidates.passes - before)
        record.search.append((logits[rows, tops].argmax(0) == self.labels).double().mean().item())
        record.holdout.append(self.validate(_split(kernels[rows, tops], self.genomes[0])))
        winner_dissimilarities = dissimilarities[rows, tops][:, rows, tops]
        record.dissimilarity.append((winner_dissimilarities.sum() / (classes * (classes - 1))).item())
        record.kept.append(shares[rows, tops].mean().item())
        alpha, size = self.preset.alpha, self.preset.size
        value = alpha * record.holdout[-1] + (1 - alpha) * record.dissimilarity[-1]
        record.value.append(value + size * (1 - record.kept[-1]))
        return list(ranked.cpu().numpy()), accuracy

    def _next_generation(self, label: int, ranked: Bits, generation: int) -> Bits:
        """Return the next population of a class: its fittest candidates unchanged, then mutated children."""
        preset, generator = self.preset, numpy_generator(self.seed, "bred", label, generation)
        children = preset.population - preset.kept
        one = np.arange(children) % preset.parents
        two = (one + 1) % preset.parents
        length = ranked.shape[1]
        cuts = generator.integers(0, length, (children, 1))
        bits = np.where(np.arange(length) < cuts, ranked[one], ranked[two])
        changes = int(length * preset.mutation)
        for row in bits:
            positions = generator.choice(length, changes, replace=False)
            drawn = generator.random(changes) < 0.5
            if preset.keep_ratio:
                _swap_bits(row, positions[drawn], self.genomes[label].lengths, generator)
            else:
                row[positions] = drawn
        return np.concatenate([ranked[: preset.kept], bits])


def initial_population(
    genome: Genome, preset: Preset, sensitive: Sequence[int], generator: np.random.Generator
) -> Bits:
    """Draw the first population: in every layer a share of the bits, important groups with higher probability.

    Where the preset's `first` is "random", each bit is set with probability 1/2 instead.
    """
    if preset.first == "random":
        return generator.random((preset.population, sum(genome.lengths))) < 0.5
    parts = []
    for layer, length in enumerate(genome.lengths):
        ratios = preset.ratios if layer in sensitive else preset.insensitive_ratios
        likely = np.exp((length - 1 - np.arange(length)) / 10)
        part = np.zeros((preset.population, length), bool)
        for row in part:
            count = int(length * generator.choice(ratios))
            row[generator.choice(length, count, replace=False, p=likely / likely.sum())] = True
        parts.append(part)
    return np.concatenate(parts, 1)


def _swap_bits(
    row: NDArray[np.bool_], positions: NDArray[np.int64], lengths: list[int], generator: np.random.Generator
) -> None:
    """Swap bits with opposite bits of the same layer, so that the number of set bits of each layer is preserved."""
    layer = np.repeat(np.arange(len(lengths)), lengths)
    for position in positions:
        others = np.flatnonzero((layer == layer[position]) & (row != row[position]))
        if len(others):
            other = generator.choice(others)
            row[position], row[other] = row[other], row[position]


def _split(kernels: Tensor, genome: Genome) -> list[Tensor]:
    return list(kernels.split([len(order) for order in genome.orders], 1))
