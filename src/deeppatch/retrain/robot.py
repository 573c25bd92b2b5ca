"""Fine-tune on images chosen by the first-order loss (RobOT)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch import runtime
from deeppatch.artifacts import Checkpoint
from deeppatch.data.corruptions import is_paired
from deeppatch.data.dataset import Data
from deeppatch.data.epochs import Passes
from deeppatch.data.pairs import fixed_draw, of_rows
from deeppatch.data.views import View
from deeppatch.errors import UserError
from deeppatch.graph.hooks import eval_mode
from deeppatch.progress import track
from deeppatch.retrain.finetune import Training, prepared
from deeppatch.retrain.names import SELECTIONS
from deeppatch.retrain.selected import Scored, check_selection, train_selected
from deeppatch.training import SGDSettings

SECTIONS = 100


def robot(
    model: nn.Module,
    data: Data,
    corruption: Any,
    *,
    select: str = "best",
    select_images: int | None = None,
    select_only: bool = False,
    select_half: bool = False,
    epochs: int = 40,
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
    """Fine-tune a network on clean images and on degraded ones that their first-order loss chooses.

    Every image of `train` is clean or degraded by one draw, which stays; the degraded ones are scored by
    `first_order_loss`, with the clean image as the seed, and trained on with the pixels that were scored (RobOT: Wang
    et al., ICSE 2021, arXiv 2102.05913).

    Args:
        model: A classifier of pixels (N, 3, H, W) in [0, 1]; it is not changed.
        data: The data; the parts `train` and `val` are read.
        corruption: The degradation: what `deeppatch.corruption` takes or returns.
        select: `best`: half of the images with the smallest loss, half with the largest (BE-ST). `multisection`: as
            many from each of 100 sections of equal width (KM-ST).
        select_images: How many images are chosen (default: 10,000); all degraded ones where there are fewer.
        select_only: Whether the chosen images alone are trained on, as in DeepPatch's comparison.
        select_half: Whether an epoch is as long as `train`, and half of it is clean, half chosen.
        epochs: The number of passes over the images that are trained on.
        passes: The number of images to train on, each time that one is, instead of `epochs`.
        lr: The initial learning rate of SGD, which falls to zero along a cosine.
        momentum: The momentum of SGD.
        weight_decay: The L2 penalty.
        batch_size: The number of images at a time.
        amp: Whether forward passes run in bfloat16.
        seed: The seed of the draw, of the sections' images, of the order of images, and of dropout.
        reseed: Whether torch's global generator is seeded for the training and restored afterwards.
        checkpoint: Where the training is saved after each epoch, and resumed from.

    Returns:
        The corrected copy, in eval mode, with the attributes `history`, `passes`, `stored_bytes`, `facts` (shares of
        failures and of levels among the chosen images) and `documents` (the chosen images).

    Raises:
        UserError: When degraded images have no clean versions, the model does not fit the data, options are unknown or
            contradict each other, or the training diverges.

    Example:
        >>> import torch
        >>> from deeppatch.data.corruptions import GaussianBlur
        >>> from deeppatch.data.images import Images
        >>> images = Images(torch.randint(0, 256, (8, 3, 12, 16), dtype=torch.uint8), torch.arange(8) % 2)
        >>> data = Data(train=images, val=images, test=images, classes=("cat", "dog"))
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> tuned = robot(model, data, GaussianBlur((1.0, 2.0)), select_images=2, epochs=2)
        >>> sorted(tuned.documents["selection.json"])
        ['index', 'level', 'score']
    """
    check_selection(select_images, only=select_only, half=select_half)
    if select not in SELECTIONS:
        raise UserError(f"select={select!r}: choose from {', '.join(SELECTIONS)}")
    settings = SGDSettings(lr, momentum, weight_decay)
    training = Training(epochs, passes, settings, batch_size, amp, seed, reseed, checkpoint)
    data, degrade = prepared(model, data, corruption, training)
    if not is_paired(degrade):
        raise UserError("robot compares each degraded image with its clean version, and some of these have none")
    draw = fixed_draw(data.train, degrade, batch_size, seed)
    candidates = of_rows(draw, (draw.levels > 0).nonzero().flatten())
    # the pixels of some are kept in memory, under numbers of their own
    numbers = draw.index[draw.levels > 0]
    clean = View(data.train, None, numbers, torch.zeros_like(numbers), batch_size)
    scores, wrong = _scores(model, candidates, clean, amp=amp)
    count = 10_000 if select_images is None else select_images
    rows = extremes(scores, count) if select == "best" else from_sections(scores, count, seed=seed)
    scored = Scored(candidates, scores, wrong, numbers, Passes(train=len(scores)))
    return train_selected(
        model, data, degrade, scored, rows, training, only=select_only, half=select_half, label="robot"
    )


def first_order_loss(model: nn.Module, pixels: Tensor, clean: Tensor, labels: Tensor, radius: Tensor) -> Tensor:
    """Return how far images are from the worst of their ball to first order, (N,): e ||g||_1 - <g, x - x0>.

    g is the gradient of an image's own cross entropy at x. The loss is 0 where x is the worst of the ball already, and
    never negative within it (Wang et al., arXiv 2102.05913, equation of the first-order loss for L-infinity balls).

    Args:
        model: A classifier, in eval mode, so that an image's loss does not depend on the others.
        pixels: The images x, float (N, 3, H, W) in [0, 1].
        clean: The images x0 that they were made from.
        labels: Their labels, int64 (N,).
        radius: The radius e of the ball around each x0, (N,).

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> clean, labels = torch.full((3, 3, 2, 2), 0.5), torch.tensor([0, 1, 1])
        >>> first_order_loss(model, clean, clean, labels, torch.zeros(3))
        tensor([0., 0., 0.])
    """
    return _losses_and_answers(model, pixels, clean, labels, radius, amp=False)[0]


def _losses_and_answers(
    model: nn.Module, pixels: Tensor, clean: Tensor, labels: Tensor, radius: Tensor, *, amp: bool
) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        x = pixels.detach().requires_grad_(True)
        with runtime.autocast(pixels.device, amp):
            logits = model(x)
        # a sum, so that the gradient of an image does not depend on how many there are
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits.float(), labels, reduction="sum"), x)
    largest = radius * gradient.abs().sum((1, 2, 3))
    return largest - (gradient * (pixels - clean)).sum((1, 2, 3)), logits.detach().argmax(1)


def _scores(model: nn.Module, candidates: View, clean: View, *, amp: bool) -> tuple[Tensor, Tensor]:
    """Return the first-order loss of each candidate and whether the model is wrong on it, both (M,)."""
    scores, wrong = [torch.empty(0, device=clean.index.device)], [torch.empty(0, device=clean.index.device).bool()]
    with eval_mode(model):
        for (pixels, labels), (before, _) in track(zip(candidates, clean, strict=True), len(candidates), "scoring"):
            radius = (pixels - before).abs().amax((1, 2, 3))
            loss, answers = _losses_and_answers(model, pixels, before, labels, radius, amp=amp)
            scores.append(loss)
            wrong.append(answers != labels)
    return torch.cat(scores), torch.cat(wrong)


def extremes(scores: Tensor, count: int) -> Tensor:
    """Return the rows of the smallest scores and as many of the largest, of equals the first, int64 (min(count, M),).

    >>> extremes(torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0]), 3)
    tensor([1, 3, 4])
    """
    count = min(count, len(scores))
    smallest = scores.argsort(stable=True)[: count // 2]
    left = torch.ones_like(scores, dtype=torch.bool)
    left[smallest] = False
    largest = scores.argsort(stable=True, descending=True)
    return torch.cat([smallest, largest[left[largest]][: count - count // 2]])


def from_sections(scores: Tensor, count: int, *, sections: int = SECTIONS, seed: int = 2021) -> Tensor:
    """Return rows drawn from sections of equal width of the range of the scores, round by round.

    In each round every section that has images left gives one, those of the lowest scores first, until there are
    `count`, or all. Images within a section are drawn by seed.

    >>> from_sections(torch.tensor([0.0, 0.1, 0.2, 9.0]), 2, sections=2).max().item()
    3
    """
    if not len(scores):
        return torch.empty(0, dtype=torch.long, device=scores.device)
    low, high = scores.min(), scores.max()
    width = (high - low) / sections
    section = torch.zeros_like(scores, dtype=torch.long)
    if width > 0:
        section = ((scores - low) / width).long().clamp(max=sections - 1)
    drawn = torch.randperm(len(scores), generator=runtime.generator(seed, "sections")).to(scores.device)
    drawn = drawn[section[drawn].argsort(stable=True)]
    ordered = section[drawn]
    starts = torch.searchsorted(ordered, ordered)
    rounds = torch.arange(len(scores), device=scores.device) - starts
    return drawn[(rounds * sections + ordered).argsort()[:count]]
