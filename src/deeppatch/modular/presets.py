"""Presets of the genetic search: the six published ones, and one that adapts to network and data."""

from __future__ import annotations

from dataclasses import dataclass

PUBLISHED_THRESHOLDS = {2: 0.95, 4: 0.95, 8: 0.85, 10: 0.80}
# settings of the gradient search that the published code has, where ours are others (Qi et al., TOSEM 2023)
PUBLISHED_GRADIENT = {"alpha": 0.1, "start": "ones"}
TOLERANCE = 0.05  # compositions are kept if their accuracy is at most this much below the strong model's


@dataclass(frozen=True)
class Preset:
    """Settings of the genetic search (Qi et al., ASE 2022).

    `sensitive` are the sensitive layers, by index among the layers of kernels, None for the automatic rule. `ratios`
    and `insensitive_ratios` are the shares of bits that a first candidate has set in a sensitive and in another layer.
    `mutation` is the share of a child's bits that are drawn anew, and `gamma` the accuracy below which accuracy weighs
    more. `thresholds` has for a number of composed classes the accuracy from which compositions are kept, None for the
    strong model's less five points. `alpha` weighs accuracy against dissimilarity, and `size` the share of kernels
    dropped; `keep_ratio` lets a mutation set as many bits of a layer as it clears. `first` is "importance" where first
    candidates prefer important groups in the shares of `ratios`, or "random" where each of their bits is a fair coin.
    `importance` is where the response of kernels is read: as in the published code, for SimCNN before max pooling,
    for ResCNN behind it.
    """

    sensitive: tuple[int, ...] | None
    ratios: tuple[float, ...]
    insensitive_ratios: tuple[float, ...]
    population: int = 100
    generations: int = 200
    mutation: float = 0.05
    gamma: float = 0.9
    thresholds: dict[int, float] | None = None
    alpha: float = 0.9
    size: float = 0.0
    keep_ratio: bool = False
    first: str = "importance"
    importance: str = "unpooled"

    @property
    def parents(self) -> int:
        """The number of fittest candidates that have children."""
        return min(50, self.population)

    @property
    def kept(self) -> int:
        """The number of fittest candidates that survive unchanged."""
        return min(20, 2 * self.population // 5)


AUTOMATIC = Preset(
    None, (0.6, 0.7, 0.8), (0.4, 0.5, 0.6, 0.7), population=50, generations=100, size=0.1, keep_ratio=True
)
# ResCNN's layers of kernels: convolutions 0, 1 and 3, 2, 4, 5 and 7, 6, 8, 9 and 11, 10
_FIVE = {2: 0.95, 4: 0.90, 5: 0.85}
PRESETS: dict[str, Preset] = {
    "auto": AUTOMATIC,
    "simcnn-cifar10": Preset(
        tuple(range(7)), (0.6, 0.7, 0.8), (0.4, 0.5, 0.6, 0.7), 100, 200, 0.05, 0.9, PUBLISHED_THRESHOLDS
    ),
    "simcnn-svhn": Preset(
        tuple(range(7)), (0.4, 0.5, 0.6), (0.1, 0.2, 0.3, 0.4), 100, 200, 0.10, 0.95, PUBLISHED_THRESHOLDS
    ),
    "simcnn-svhn_5": Preset(tuple(range(5)), (0.4, 0.5, 0.6, 0.7), (0.3, 0.4), 50, 100, 0.10, 0.95, _FIVE),
    "rescnn-cifar10": Preset(
        (0, 1, 3, 4), (0.5, 0.6, 0.7), (0.2, 0.3, 0.4), 100, 200, 0.05, 0.9, PUBLISHED_THRESHOLDS,
        importance="pooled",
    ),
    "rescnn-svhn": Preset(
        (1, 3, 4), (0.3, 0.4, 0.5), (0.2, 0.3), 100, 200, 0.10, 0.9, {2: 0.95, 4: 0.95, 8: 0.90, 10: 0.85},
        importance="pooled",
    ),
    "rescnn-svhn_5": Preset((3, 4), (0.3, 0.4, 0.5), (0.2, 0.3), 50, 100, 0.10, 0.9, _FIVE, importance="pooled"),
}  # fmt: skip


def sizes(classes: int) -> list[int]:
    """Return the numbers of classes that result from merges in a tournament, in which an odd last list waits."""
    lists, totals = [1] * classes, set()
    while len(lists) > 1:
        pairs = [a + b for a, b in zip(lists[::2], lists[1::2], strict=False)]
        totals |= set(pairs)
        lists = pairs + lists[len(lists) - len(lists) % 2 :]
    return sorted(totals)


def thresholds(preset: Preset, classes: int, strong: float) -> dict[int, float]:
    """Return the accuracy from which compositions are kept, by number of classes; `strong` is the whole network's.

    A number of classes without a published threshold uses that of the next larger one.
    """
    if preset.thresholds is None:
        return dict.fromkeys(sizes(classes), max(0.0, strong - TOLERANCE))
    known = preset.thresholds
    return {size: known[min((k for k in known if k >= size), default=max(known))] for size in sizes(classes)}
