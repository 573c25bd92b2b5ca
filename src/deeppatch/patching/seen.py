"""Tell whether a network has seen images that it is to be calibrated on, because then no bound that they show holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy.stats import binomtest, fisher_exact, ttest_ind
from torch import nn

from deeppatch import runtime
from deeppatch.data import views
from deeppatch.data.images import Images
from deeppatch.errors import UserError
from deeppatch.graph.hooks import eval_mode
from deeppatch.progress import track
from deeppatch.zoo.classifier import device_of

LEVEL = 0.001  # of the test, both measures together


@dataclass(frozen=True)
class Seen:
    """How a network does on images that it may have seen, and on others.

    Args:
        seen: Whether it does so much better on the former that it must have seen them, or that they are easier.
        accuracy: Its accuracy on them, a share in [0, 1].
        confidence: The mean probability of its predictions on them.
        unseen_accuracy: Its accuracy on the others, or the published one.
        unseen_confidence: The mean probability of its predictions on the others; None where these are not at hand.
        p_accuracy: The one-sided p-value of equal accuracies.
        p_confidence: The one-sided p-value of equal mean confidences, None where the others are not at hand.
    """

    seen: bool
    accuracy: float
    confidence: float
    unseen_accuracy: float
    unseen_confidence: float | None
    p_accuracy: float
    p_confidence: float | None

    def facts(self) -> dict[str, Any]:
        """Return the values for a report, as JSON values."""
        return asdict(self)


def compare_seen(
    model: nn.Module, images: Images, others: Images | float, *, batch_size: int = 256, amp: bool = False
) -> Seen:
    """Tell whether a network has probably been trained on images.

    They count as seen where accuracy (Fisher's exact test) or mean confidence (Welch's t-test) is higher than on the
    others, one-sided, with p below 0.0005, so that of a hundred thousand networks that have seen neither at most a
    hundred are accused. Images that are easier than the others count, too: a bound that they show does not hold for the
    others either.

    Args:
        model: A classifier of pixels (N, 3, H, W) in [0, 1]; it is not changed.
        images: The images in question, clean.
        others: Images of the same kind that it has surely not seen; or its published accuracy, a share in [0, 1], which
            the exact binomial test is done against.
        batch_size: The number of images in a batch.
        amp: Whether the network runs in bfloat16.

    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    >>> images = Images(torch.rand(20, 3, 2, 2), torch.arange(20) % 2)
    >>> compare_seen(network, images, images).seen
    False
    """
    right, sure = _measured(model, images, batch_size, amp)
    wins, count = int(right.sum()), len(right)
    accuracy, confidence = wins / count, sure.mean().item()
    if isinstance(others, float):
        p = float(binomtest(wins, count, others, alternative="greater").pvalue)
        return Seen(p < LEVEL, accuracy, confidence, others, None, p, None)
    other_right, other_sure = _measured(model, others, batch_size, amp)
    other_wins, other_count = int(other_right.sum()), len(other_right)
    table = [[wins, count - wins], [other_wins, other_count - other_wins]]
    p_accuracy = float(fisher_exact(table, alternative="greater").pvalue)
    p_confidence = 1.0
    if min(count, other_count) > 1 and sure.std() + other_sure.std() > 0:
        welch = ttest_ind(sure.numpy(), other_sure.numpy(), equal_var=False, alternative="greater")
        p_confidence = float(welch.pvalue)
    return Seen(
        min(p_accuracy, p_confidence) < LEVEL / 2,
        accuracy,
        confidence,
        other_wins / other_count,
        other_sure.mean().item(),
        p_accuracy,
        p_confidence,
    )


def apart(images: Images, count: int, seed: int = 2021) -> tuple[Images, Images]:
    """Draw images to calibrate on, and return them and all others, both in their order.

    Args:
        images: Images that the network has not seen, such as the test part.
        count: How many to draw, at least one and not all.
        seed: The seed of the draw.

    Raises:
        UserError: When no image would be drawn, or none left.

    >>> chosen, others = apart(Images(torch.rand(20, 3, 2, 2), torch.arange(20)), 5)
    >>> len(chosen), sorted(chosen.labels.tolist() + others.labels.tolist()) == list(range(20))
    (5, True)
    """
    if not 0 < count < len(images):
        raise UserError(f"{count} of {len(images)} images cannot be set apart; leave some on both sides")
    order = torch.randperm(len(images), generator=runtime.generator(seed, "calibrate")).to(images.labels.device)
    chosen, others = (images.take(part.sort().values) for part in (order[:count], order[count:]))
    return chosen, others


@torch.inference_mode()
def _measured(model: nn.Module, images: Images, batch_size: int, amp: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which images are classified correctly, and the probabilities of the predictions, float64."""
    device, right, sure = device_of(model), [], []
    view = views.clean(images.to(device), batch_size)
    with eval_mode(model):
        for pixels, labels in track(view, len(view), "comparing with unseen images"):
            with runtime.autocast(device, amp):
                logits = model(pixels)
            top = logits.double().softmax(1).max(1)
            right.append((top.indices == labels).cpu())
            sure.append(top.values.cpu())
    return torch.cat(right), torch.cat(sure)
