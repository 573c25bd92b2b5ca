"""Join a weak model and the module of a strong model for one class, and compare the joins."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.data import views
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.errors import UserError
from deeppatch.modular.join_names import parse
from deeppatch.modular.joins import (
    JOINS,
    RANGES,
    Calibrated,
    JoinData,
    Range,
    calibrate,
    class_metrics,
    fit_range,
    join_scores,
)
from deeppatch.modular.modules import ClassModule, Modules
from deeppatch.progress import track
from deeppatch.zoo.classifier import device_of

BEFORE = "weak model alone"
Join = Range | Calibrated | None  # None: the module's scores are not mapped


class JoinedModel(nn.Module):
    """A weak model whose last class is decided by a module of a strong model."""

    def __init__(self, weak: nn.Module, module: nn.Module, join: Join) -> None:
        super().__init__()
        self.weak = weak
        self.module = module
        self.join = join
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Map pixels (N, 3, H, W) in [0, 1] to scores (N, K) of the weak model's classes; the highest one wins."""
        return _joined(self.join, self.weak(pixels).float(), self.module(pixels).float())


@dataclass(frozen=True)
class JoinComparison:
    """Metrics of a weak model on its test images, alone and with each join.

    Args:
        ranges: The range of the module's scores by name of the join.
        range_images: The number of scores that ranges are computed from.
        test_images: The number of test images.
        metrics: Precision, recall and F1 of the class, and the accuracy of the others, each in [0, 1], by name of the
            join; BEFORE is the weak model without a module.
    """

    ranges: dict[str, Range]
    range_images: int
    test_images: int
    metrics: dict[str, dict[str, float]]


@dataclass(frozen=True)
class _WeakModelAndModule:
    """A weak model and a module in eval mode, and the settings to run them."""

    weak: nn.Module
    module: ClassModule
    batch_size: int
    amp: bool
    seed: int

    def outputs(self, model: nn.Module, images: Images, label: str) -> Tensor:
        """Return the outputs of a model for clean images, float32, in order."""
        device = device_of(model)
        view, rows = views.clean(images.to(device), self.batch_size), []
        with torch.no_grad():
            for pixels, _labels in track(view, len(view), label):
                with runtime.autocast(device, self.amp):
                    rows.append(model(pixels).float())
        return torch.cat(rows)

    def own_scores(self, data: Data) -> Tensor:
        """Return the module's scores of the val images of its class, from which ranges are computed."""
        own = data.val.take((data.val.labels == self.module.label).nonzero().flatten())
        if not len(own):
            raise UserError(f"{data.name}: val has no image of class {self.module.label}, so that there is no range")
        return self.outputs(self.module, own, "scores of val")

    def join_data(self, images: Images, part: str) -> JoinData:
        """Return the outputs of both for images of the weak model's data."""
        logits, scores = (self.outputs(model, images, f"outputs for {part}") for model in (self.weak, self.module))
        return JoinData(logits, scores, images.labels.to(logits.device))

    def calibrated(self, data: Data) -> Calibrated:
        """Train a join on the weak model's data."""
        return calibrate(self.join_data(data.train, "train"), self.join_data(data.val, "val"), self.seed)


def join_module(
    weak: nn.Module,
    modules: Modules,
    strong: nn.Module,
    target: int,
    data: Data,
    *,
    join: str | None = None,
    weak_data: Data | None = None,
    batch_size: int = 256,
    amp: bool = False,
    seed: int = 2021,
) -> JoinedModel:
    """Let the module of a strong model for one class correct a weak model (Qi et al., ASE 2022; TOSEM 2023).

    Args:
        weak: A classifier of pixels (N, 3, H, W) in [0, 1] that returns logits (N, K); the last of its classes is
            corrected.
        modules: The modules that `split_into_modules` returned for `strong`.
        strong: The classifier that was split.
        target: The index of the class to correct among the classes of `strong`.
        data: The data of `strong`; the range of the module's scores is that of the val images of its class.
        join: min_max, percentile (10 and 90; or percentile:M,N), outlier or norm use a range of the module's scores;
            direct uses the scores of heads unchanged; calibrate trains a linear layer. Default: direct if modules
            have heads, else min_max.
        weak_data: The data of `weak`, only for calibrate, which learns from train and chooses the epoch on val.
        batch_size: The number of images in a batch.
        amp: Whether the models run in bfloat16.
        seed: The seed of calibrate.

    Returns:
        A model that returns scores (N, K) of the weak model's classes; it shares no parameters with the arguments.

    Raises:
        UserError: When there is no such join or class, or heads or `weak_data` are needed and missing.
        StaleArtifact: When `modules` belong to another classifier than `strong`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from deeppatch.data.dataset import Data
        >>> from deeppatch.data.images import Images
        >>> from deeppatch.modular.gradient_search import GradientSearch
        >>> from deeppatch.modular.splitting import split_into_modules
        >>> images = Images(torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8), torch.arange(12) % 2)
        >>> data = Data(images, images, images, ("cat", "dog"))
        >>> def network(classes):
        ...     return nn.Sequential(
        ...         nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes))
        >>> strong, weak = network(2), network(3)
        >>> modules = split_into_modules(strong, data, method=GradientSearch(epochs=1))
        >>> model = join_module(weak, modules, strong, 1, data, join="percentile:5,95")
        >>> model(data.example).shape
        torch.Size([2, 3])
    """
    join = join or ("direct" if modules.has_heads else "min_max")
    pair = _prepare(weak, modules, strong, target, data, (batch_size, amp, seed))
    name = parse(join)[0]
    joined_by: Join = None
    if name in RANGES:
        joined_by = fit_range(join, pair.own_scores(data))
    elif name == "calibrate":
        if weak_data is None:
            raise UserError("the join calibrate is trained on the weak model's data; give weak_data")
        joined_by = pair.calibrated(weak_data)
    elif not modules.has_heads:
        raise UserError("the join direct needs modules with heads, of the gradient search")
    return JoinedModel(pair.weak, pair.module, joined_by)


def compare_joins(
    weak: nn.Module,
    modules: Modules,
    strong: nn.Module,
    target: int,
    data: Data,
    weak_data: Data,
    *,
    joins: Sequence[str] | None = None,
    batch_size: int = 256,
    amp: bool = False,
    seed: int = 2021,
) -> JoinComparison:
    """Measure a weak model on its test images, without and with a module, by each of `joins`.

    Arguments are those of `join_module`; `joins` are by default all that the modules support. Each model runs on each
    image once.
    """
    joins = default_joins(modules) if joins is None else joins
    pair = _prepare(weak, modules, strong, target, data, (batch_size, amp, seed))
    own = pair.own_scores(data)
    ranges = {join: fit_range(join, own) for join in dict.fromkeys([*RANGES, *joins]) if parse(join)[0] in RANGES}
    test = pair.join_data(weak_data.test, "test")
    logits_by_join = {BEFORE: test.logits}
    for join in joins:
        made: Join = pair.calibrated(weak_data) if join == "calibrate" else ranges.get(join)
        logits_by_join[join] = _joined(made, test.logits, test.scores).detach()
    last = test.logits.shape[1] - 1
    return JoinComparison(
        ranges=ranges,
        range_images=len(own),
        test_images=len(test.labels),
        metrics={join: class_metrics(logits.argmax(1), test.labels, last) for join, logits in logits_by_join.items()},
    )


def default_joins(modules: Modules) -> list[str]:
    """Return all joins that modules support, the default one first."""
    return ["direct"] * modules.has_heads + [join for join in JOINS if join != "direct"]


def _prepare(
    weak: nn.Module, modules: Modules, strong: nn.Module, target: int, data: Data, settings: tuple[int, bool, int]
) -> _WeakModelAndModule:
    if not 0 <= target < modules.classes:
        raise UserError(f"class {target}: the modules are of classes 0 to {modules.classes - 1}")
    return _WeakModelAndModule(copy.deepcopy(weak).eval(), modules.member(strong, data.example, target), *settings)


def _joined(join: Join, logits: Tensor, scores: Tensor) -> Tensor:
    if isinstance(join, Calibrated):
        logits_joined: Tensor = join(torch.cat([logits[:, :-1], scores.unsqueeze(1)], 1))
        return logits_joined
    return join_scores(logits, scores if join is None else join(scores))
