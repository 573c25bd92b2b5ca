"""Fine-tune on the worst of several degraded versions of each image (Sensei)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch import runtime
from deeppatch.artifacts import Checkpoint
from deeppatch.data.corruptions import Corruption, Spatial
from deeppatch.data.dataset import Data
from deeppatch.data.epochs import ChosenEpochs, Passes, StreamInputs, degraded_epochs
from deeppatch.data.images import to_float
from deeppatch.data.views import Batch, Shuffled, degraded
from deeppatch.errors import UserError, check_positive
from deeppatch.graph.hooks import eval_mode
from deeppatch.retrain.finetune import Training, noted, prepared
from deeppatch.retrain.population import LARGEST, Evolution, Population
from deeppatch.retrain.whole import train_whole
from deeppatch.training import SGDSettings


def sensei(
    model: nn.Module,
    data: Data,
    corruption: Any,
    *,
    popsize: int = 10,
    robust_threshold: float = 1e-3,
    crossover_prob: float = 0.4,
    epochs: int = 20,
    passes: int | None = None,
    lr: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch_size: int = 256,
    amp: bool = False,
    seed: int = 2021,
    reseed: bool = True,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Fine-tune a network on that version of each image, among several candidates, whose loss is the largest.

    Sensei: Gao et al., Fuzz Testing based Data Augmentation to Improve Robustness of DNNs, ICSE 2020. Candidates are
    compared, in eval mode, by the network as it is just before it is trained on the batch. For degradations with levels
    they are all levels, clean included, or where there are more than `popsize` the level that `finetune` draws and
    others drawn by seed. For `spatial` they are settings of its seven parameters, and evolve: from one epoch to the
    next an image keeps its worst settings, and children of the worst one join them.

    Args:
        model: A classifier of pixels (N, 3, H, W) in [0, 1]; it is not changed.
        data: The data; the parts `train` and `val` are read.
        corruption: The degradation: what `deeppatch.corruption` takes or returns.
        popsize: The largest number of candidates of an image; 1 is fine-tuning.
        robust_threshold: The loss below which the worst setting of an image is harmless: it is then trained on in the
            next epoch without a search (`spatial` only).
        crossover_prob: The probability that children are crossed over, and not mutated (`spatial` only).
        epochs: The number of passes over `train`.
        passes: The number of images to train on, each time that one is, instead of `epochs`.
        lr: The initial learning rate of SGD, which falls to zero along a cosine.
        momentum: The momentum of SGD.
        weight_decay: The L2 penalty.
        batch_size: The number of images at a time.
        amp: Whether forward passes run in bfloat16.
        seed: The seed of the order of images, of candidates, and of dropout.
        reseed: Whether torch's global generator is seeded for the training and restored afterwards.
        checkpoint: Where the training is saved after each epoch, with the settings of all images, and resumed from.

    Returns:
        The corrected copy, in eval mode, with the attributes `history`, `passes`, `stored_bytes` and `facts`.

    Raises:
        UserError: When an option is out of range, the model does not fit the data, or the training diverges.

    Example:
        >>> import torch
        >>> from deeppatch.data.corruptions import GaussianBlur
        >>> from deeppatch.data.images import Images
        >>> images = Images(torch.randint(0, 256, (8, 3, 12, 16), dtype=torch.uint8), torch.arange(8) % 2)
        >>> data = Data(train=images, val=images, test=images, classes=("cat", "dog"))
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> tuned = sensei(model, data, GaussianBlur((1.0, 2.0)), epochs=2)
        >>> tuned.facts, tuned.passes
        ({'search': 'all levels', 'candidates': 3}, Passes(train=16, forward=96))
    """
    stream = SenseiStream(popsize, robust_threshold, crossover_prob)
    settings = SGDSettings(lr, momentum, weight_decay)
    training = Training(epochs, passes, settings, batch_size, amp, seed, reseed, checkpoint)
    data, degrade = prepared(model, data, corruption, training)
    plain = degraded_epochs(data.train, degrade, **training.budget)
    tuned = copy.deepcopy(model)
    found = stream(StreamInputs(tuned, data.train, degrade, plain, batch_size, seed, amp))
    trained = train_whole(
        tuned,
        model,
        data,
        degrade,
        found.epochs,
        training,
        label="sensei",
        carried=found.carried,
        spent=found.spent,
    )
    return noted(trained, facts=found.facts())


@dataclass(frozen=True)
class SenseiStream:
    """Choose of several versions of each image the one of largest loss, by the network that is trained on it.

    `sensei` trains whole networks on these images, and `train_patch` with `stream=SenseiStream()` a patch. The
    arguments are those of `sensei`.

    Raises:
        UserError: When a number is out of range.
    """

    popsize: int = 10
    robust_threshold: float = 1e-3
    crossover_prob: float = 0.4

    def __post_init__(self) -> None:
        """Raise UserError when a number is out of range."""
        check_positive(robust_threshold=self.robust_threshold)
        if not 1 <= self.popsize <= LARGEST or not 0 <= self.crossover_prob <= 1:
            raise UserError(
                f"popsize={self.popsize}, crossover_prob={self.crossover_prob}: give from 1 to {LARGEST} candidates, "
                "and a probability from 0 to 1"
            )

    def __call__(self, inputs: StreamInputs) -> ChosenEpochs:
        """Return the epochs in which each image is the worst of its versions."""
        images, corruption, plain = inputs.images, inputs.corruption, inputs.plain
        if self.popsize == 1:
            return ChosenEpochs(plain, facts=lambda: {"search": "none", "candidates": 1})

        def losses(pixels: Tensor, labels: Tensor) -> Tensor:
            return losses_of(inputs.network, pixels, labels, amp=inputs.amp)

        def searched(search: Search) -> list[Searched]:
            return [Searched(whole, each.sizes, search) for whole, each in inputs.shuffled(corruption)]

        if isinstance(corruption, Spatial):
            evolution = Evolution(self.popsize, self.robust_threshold, self.crossover_prob, inputs.seed)
            population = Population(len(images), corruption, losses, evolution, images.labels.device)
            return ChosenEpochs(
                searched(population),
                population,
                lambda: Passes(forward=population.evaluated),
                lambda: {
                    "search": "genetic",
                    "candidates": self.popsize,
                    "robust_percent": 100 * population.robust.double().mean().item(),
                },
            )
        candidates = min(self.popsize, len(corruption) + 1)
        kind = "all levels" if candidates == len(corruption) + 1 else "sampled levels"
        read = sum(sum(each.sizes) for each in plain)
        return ChosenEpochs(
            searched(WorstLevel(corruption, losses, candidates, inputs.seed)),
            None,
            lambda: Passes(forward=candidates * read),
            lambda: {"search": kind, "candidates": candidates},
        )


# indices of the images of a batch in `train`, their clean pixels and labels, the levels that fine-tuning draws, and
# numbers of epoch and of the first image -> the pixels to train on
Search = Callable[[Tensor, Tensor, Tensor, Tensor, int, int], Tensor]
# pixels (N, 3, H, W) and labels (N,) -> the loss of each image, (N,)
Losses = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Searched:
    """The batches of an epoch with the pixels that a search finds; it has run when a batch is read, and not before."""

    epoch: Shuffled
    sizes: list[int]
    search: Search

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Batch]:
        images = self.epoch.images
        order, levels = (drawn.to(images.labels.device) for drawn in self.epoch.draw()[:2])
        start = 0
        for size in self.sizes:
            index = order[start : start + size]
            pixels, labels = to_float(images.pixels[index]), images.labels[index]
            yield self.search(index, pixels, labels, levels[start : start + size], self.epoch.epoch, start), labels
            start += size


@torch.no_grad()
def losses_of(model: nn.Module, pixels: Tensor, labels: Tensor, *, amp: bool = False) -> Tensor:
    """Return the cross entropy of each image, float32 (N,), in eval mode."""
    with eval_mode(model), runtime.autocast(pixels.device, amp):
        logits = model(pixels)
    return F.cross_entropy(logits.float(), labels, reduction="none")


@dataclass(frozen=True)
class WorstLevel:
    """The search over levels: each image gets, of its candidates, the first one of largest loss.

    Args:
        corruption: The degradation.
        losses: The losses by the network as it is.
        candidates: The number of candidates of an image.
        seed: The seed of the candidates where they are not all levels, and of the degradation.
    """

    corruption: Corruption
    losses: Losses
    candidates: int
    seed: int

    def __call__(self, index: Tensor, pixels: Tensor, labels: Tensor, levels: Tensor, epoch: int, start: int) -> Tensor:
        """Return the worst candidates of the images of a batch, (N, 3, H, W)."""
        worst, most = pixels, torch.full(labels.shape, -torch.inf, device=pixels.device)
        for level in self.of(levels, epoch, start):
            found = degraded(pixels, self.corruption, level, self.seed, "epoch", epoch, start)
            loss = self.losses(found, labels)
            worse = loss > most
            worst = torch.where(worse.view(-1, 1, 1, 1), found, worst)
            most = torch.where(worse, loss, most)
        return worst

    def of(self, levels: Tensor, epoch: int, start: int) -> Tensor:
        """Return the levels of the candidates, (K, N): all, or those that were drawn, (N,), and others by seed."""
        count = len(self.corruption) + 1
        if self.candidates == count:
            return torch.arange(count, device=levels.device).unsqueeze(1).expand(-1, len(levels))
        generator = runtime.generator(self.seed, "candidates", epoch, start)
        order = torch.rand(len(levels), count, generator=generator).to(levels.device)
        order.scatter_(1, levels.unsqueeze(1), -1.0)
        return order.argsort(1)[:, : self.candidates].T
