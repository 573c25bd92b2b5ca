"""The gradient search: a threshold for each kernel and module, trained together with the heads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from deeppatch.data.images import Images
from deeppatch.data.views import Shuffled, clean
from deeppatch.distributed.data_parallel import Batch, Stream
from deeppatch.divergence import Validation
from deeppatch.metrics import accuracy
from deeppatch.modular.heads import Heads, Scales
from deeppatch.modular.layers import Layer
from deeppatch.modular.masking import masked_logits, sliced_logits
from deeppatch.runtime import generator
from deeppatch.training import History, Loss

BATCH_SIZE = 64  # images in a batch
EPOCHS = 145  # as published
WARM_UP_EPOCHS = 5  # epochs that train only the heads first
CYCLE = (5, 2)  # epochs that train masks and heads, then epochs that train only the heads


class BinaryStep(Function):
    """A step function with a straight-through gradient, clipped to [-1, 1] (Qi et al., TOSEM 2023)."""

    @staticmethod
    def forward(ctx: Any, threshold: Tensor) -> Tensor:
        """Return the mask of thresholds, of the same shape."""
        return (threshold > 0).to(threshold.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradient for the thresholds."""
        return gradient.clamp(-1, 1)


class Splitter(nn.Module):
    """N modules of a frozen network, one for each class: a threshold for each kernel, and heads, scales or neither.

    All modules run as one batch, because they share their weights. `first` has the initial thresholds (classes,
    kernels) by layer; a kernel is kept while its threshold is above zero.
    """

    def __init__(
        self,
        classifier: Sequence[nn.Module],
        layers: Sequence[Layer],
        first: Sequence[Tensor],
        *,
        head: bool,
        scaled: bool = False,
    ) -> None:
        super().__init__()
        self.frozen = tuple(classifier)  # normalisation and network, as a tuple so that they are not part of the state
        self.layers = layers
        classes = len(first[0])
        self.thresholds = nn.ParameterList(values.clone() for values in first)
        self.heads = Heads(classes, classes) if head else Scales(classes) if scaled else None

    def masks(self) -> list[Tensor]:
        """Return which kernels the modules keep, in {0, 1}, (classes, kernels) by layer; a layer keeps at least one."""
        return [_keep_at_least_one(BinaryStep.apply(values), values) for values in self.thresholds]

    def kept_share(self) -> Tensor:
        """Return the mean share of kernels that the modules keep, counted in each convolution."""
        times = [len(layer.convs) for layer in self.layers]
        kept = torch.stack([mask.sum() * each for mask, each in zip(self.masks(), times, strict=True)]).sum()
        return kept / sum(values.numel() * each for values, each in zip(self.thresholds, times, strict=True))

    def shared_share(self) -> Tensor:
        """Return the share of kernels that two different modules both keep, the mean over pairs; 0 for one module."""
        both, total = self.thresholds[0].new_zeros(()), 0
        for layer, mask in zip(self.layers, self.masks(), strict=True):
            both = both + len(layer.convs) * (mask.sum(0).square() - mask.square().sum(0)).sum()
            total += len(layer.convs) * mask.shape[1]
        classes = len(self.thresholds[0])
        return both / (total * max(1, classes * (classes - 1)))

    def logits(self, pixels: Tensor) -> Tensor:
        """Return every module's logits (N, modules, classes) for pixels (N, 3, H, W) in [0, 1]."""
        normalize, network = self.frozen
        return masked_logits(network, self.layers, self.masks(), normalize(pixels)).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map pixels (N, 3, H, W), or the modules' logits (N, modules, classes), to scores (N, modules)."""
        logits = self.logits(x) if x.ndim == 4 else x
        if self.heads is None:
            return logits.diagonal(dim1=1, dim2=2)
        scores: Tensor = self.heads(logits)
        return scores


def first_thresholds(importance: Sequence[Tensor], start: float) -> list[Tensor]:
    """Return thresholds (classes, kernels) by layer, evenly spaced from nearly 0 to twice `start` by importance.

    Kernels are then dropped one by one, least important first. Published thresholds all start at the same value, and
    cross zero at the same time.
    """
    thresholds = []
    for values in importance:
        ranks = values.argsort(dim=1, stable=True).argsort(dim=1) + 1
        thresholds.append(2 * start * ranks / values.shape[1])
    return thresholds


def selective_thresholds(importance: Sequence[Tensor], distance: float) -> list[Tensor]:
    """Return thresholds (classes, kernels) by layer, evenly spaced from -2 to 2 times `distance` over all layers.

    For each class they rise with how selective a kernel is: its importance to the class, divided by that to the class
    to which it is most important. Modules so begin with the more selective half of all kernels.
    """
    shares = torch.cat([values / values.amax(0).clamp(min=1e-12) for values in importance], 1)
    ranks = (shares.argsort(dim=1, stable=True).argsort(dim=1) + 1) / shares.shape[1]
    return list((distance * (4 * ranks - 2)).split([values.shape[1] for values in importance], 1))


def initial_thresholds(start: str, importance: Sequence[Tensor], distance: float, seed: int) -> list[Tensor]:
    """Return initial thresholds (classes, kernels) by layer.

    Args:
        start: "importance" for `first_thresholds`; "selective" for `selective_thresholds`; "ones" (published), "zeros",
            with which modules begin with one kernel in each layer, or "random", numbers of a normal distribution, with
            which they begin as a random half.
        importance: The importance of kernels to classes, (classes, kernels) by layer.
        distance: How far the mean threshold of the kernels that are kept is from zero, for the first two.
        seed: The seed of random thresholds.
    """
    if start == "importance":
        return first_thresholds(importance, distance)
    if start == "selective":
        return selective_thresholds(importance, distance)
    if start == "random":
        source = generator(seed, "thresholds")
        return [torch.randn(values.shape, generator=source).to(values.device) for values in importance]
    return [torch.full(values.shape, float(start == "ones"), device=values.device) for values in importance]


def switches(count: int) -> list[int]:
    """Return the epochs, of `count`, with which another phase begins: of heads only, or of masks and heads."""
    cycles = range(WARM_UP_EPOCHS, count, sum(CYCLE))
    return [epoch for first in cycles for epoch in (first, first + CYCLE[0]) if epoch < count]


def _keep_at_least_one(mask: Tensor, values: Tensor) -> Tensor:
    """Keep the kernel of the highest threshold where a module would keep none of a layer."""
    dead = mask.sum(1, keepdim=True) == 0
    nearest = F.one_hot(values.argmax(1), values.shape[1]).to(mask)
    return mask + dead * nearest


def splitting_loss(alpha: float, shared: float = 0.0) -> Loss:
    """Return the loss: cross entropy of the scores, plus, while masks are trained, what modules keep.

    That is `alpha` times the share of kernels that a module keeps, and `shared` times that which two modules both keep.
    """

    def value(model: nn.Module, batch: Batch) -> Tensor:
        x, labels = batch
        entropy = F.cross_entropy(model(x), labels)
        if x.ndim != 4:
            return entropy
        kept = alpha * model.kept_share()  # type: ignore[operator]
        return entropy + kept + (shared * model.shared_share() if shared else 0)  # type: ignore[operator]

    return value


@dataclass(frozen=True)
class HeadEpoch:
    """One epoch that trains only the heads; masks do not change, so the modules' logits are computed once.

    Batches are (logits (N, modules, classes), labels (N,)), in an order that depends on `seed` and `epoch`.
    """

    model: Splitter
    images: Images
    batch_size: int
    seed: int
    epoch: int
    logits_cache: dict[bytes, Tensor]

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order = torch.randperm(len(self.images), generator=generator(self.seed, "heads", self.epoch))
        logits = self._logits()
        for index in order.to(self.images.labels.device).split(self.batch_size):
            yield logits[index], self.images.labels[index]

    def _logits(self) -> Tensor:
        with torch.no_grad():
            masks = self.model.masks()
            key = b"".join(mask.bool().cpu().numpy().tobytes() for mask in masks)
            if key not in self.logits_cache:
                self.logits_cache.clear()
                self.logits_cache[key] = module_logits(self.model, self.images)
        return self.logits_cache[key]


@torch.no_grad()
def module_logits(model: Splitter, images: Images, batch_size: int = 64) -> Tensor:
    """Return every module's logits (N, modules, classes) for all images."""
    if all(bool(mask.all()) for mask in model.masks()):  # every module is still the whole network
        normalize, network = model.frozen
        whole = torch.cat([network(normalize(pixels)) for pixels, _labels in clean(images, 256)])
        return whole.unsqueeze(1).expand(-1, len(model.thresholds[0]), -1)
    return torch.cat([model.logits(pixels) for pixels, _labels in clean(images, batch_size)])


@torch.no_grad()
def logits_of_smaller(model: Splitter, images: Images, batch_size: int = 1024) -> Tensor:
    """Return what `module_logits` does, up to rounding, of the smaller networks: faster where modules are small."""
    normalize, network = model.frozen
    masks = [mask.bool() for mask in model.masks()]
    parts = [
        sliced_logits(network, model.layers, masks, normalize(pixels), label="modules")
        for pixels, _labels in clean(images, batch_size)
    ]
    return torch.cat(parts, 1).transpose(0, 1)


def accuracy_of_scaled(images: Images) -> Validation:
    """Return a function that measures the accuracy, in [0, 1], of modules with the scales that fit these images."""

    def measure(model: nn.Module) -> float:
        assert isinstance(model, Splitter)
        assert isinstance(model.heads, Scales)
        logits = logits_of_smaller(model.eval(), images)
        return accuracy(model.heads.fitted(logits, images.labels)(logits).argmax(1), images.labels)

    return Validation(measure, images.labels)


def epochs(model: Splitter, images: Images, batch_size: int, seed: int, count: int) -> list[Stream]:
    """Return `count` epochs: five for the heads, then alternately five for masks and heads and two for the heads only.

    Without heads all of them are for masks, and for scales if there are any (Qi et al., TOSEM 2023).
    """
    logits_cache: dict[bytes, Tensor] = {}
    streams: list[Stream] = []
    for epoch in range(count):
        turn = (epoch - WARM_UP_EPOCHS) % sum(CYCLE)
        if isinstance(model.heads, Heads) and (epoch < WARM_UP_EPOCHS or turn >= CYCLE[0]):
            streams.append(HeadEpoch(model, images, batch_size, seed, epoch, logits_cache))
        else:
            streams.append(Shuffled(images, batch_size, seed, epoch))
    return streams


def choose_smallest(strong: float, allowed: float) -> Callable[[History], int]:
    """Return the function that chooses the best epoch by held-out accuracy and kept share (`History.watched`).

    Of the epochs whose accuracy is less than `allowed` below that of the `strong` model, in [0, 1], the one that keeps
    fewest kernels is best; if there is none, the most accurate one.
    """

    def choose(history: History) -> int:
        good = [e for e, accuracy in enumerate(history.accuracy) if accuracy > strong - allowed]
        return min(good, key=lambda epoch: history.watched[epoch]) if good else history.best

    return choose
