"""Choose which images of a pool to label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from deeppatch.data.dataset import Data
from deeppatch.errors import UserError
from deeppatch.hybrid.budget import affordable
from deeppatch.hybrid.oracle import Labels, Oracle
from deeppatch.hybrid.selection import Selection
from deeppatch.hybrid.selection_methods import METHODS, SelectionInputs


def choose_labels(
    model: nn.Module,
    pool_pixels: Tensor,
    data: Data,
    budget: int | str,
    *,
    method: str = "hybrid",
    oracle: Labels | None = None,
    views: int = 8,
    encode: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 256,
    amp: bool = False,
    seed: int = 2021,
) -> Selection:
    """Choose which images of a pool to label, and which to learn from without a label.

    Args:
        model: a classifier that ends in a linear layer: float pixels (N, 3, H, W) in [0, 1] to logits (N, C).
        pool_pixels: images without labels, uint8 (N, 3, H, W).
        data: the images that the model was trained on; only those of train are read.
        budget: how many labels may be bought: a number, or a share of the pool such as "1%".
        method: `hybrid` (Li, Chen and Xu, "HybridRepair", ISSTA 2022), or another key of METHODS.
        oracle: the labels of the pool, int64 (N,), or a function from indices (B,) to labels (B,), which is called
            once, for what is bought. None: labels are given later, with `selection.with_labels`.
        views: how many AugMix views of each image are looked at, beside itself (hybrid and ssl-consistency).
        encode: a function from uint8 pixels to features (N, D) by which coreset and hybrid compare images; None: the
            model's own features.
        batch_size: how many images each pass through the model has.
        amp: whether the passes run in bfloat16.
        seed: of all that is drawn.

    Returns:
        The selection: `.bought` are the indices to label, the most wanted first, and `.labels` their labels,
        -1 where nobody has given them yet. The model is left as it was.

    Raises:
        UserError: for an unknown method, or a budget that buys nothing or more than the pool.

    >>> import torch
    >>> from deeppatch.data.images import Images
    >>> pixels = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    >>> train = Images(pixels[:20], torch.arange(20) % 2)
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, 2))
    >>> selection = choose_labels(network, pixels[20:], Data(train, train, train, ("cat", "dog")), "10%", views=2)
    >>> len(selection.bought), selection.labels.tolist()
    (4, [-1, -1, -1, -1])
    >>> selection.with_labels(torch.tensor([0, 1, 1, 0])).labels.tolist()
    [0, 1, 1, 0]
    """
    if method not in METHODS:
        raise UserError(f"method {method!r} is unknown; choose from {', '.join(METHODS)}")
    count = affordable(budget, len(pool_pixels))
    device = next(model.parameters()).device
    train = data.train.pixels[:].to(device)
    evidence = SelectionInputs(model, pool_pixels.to(device), train, seed, views, encode, batch_size, amp)
    selection = METHODS[method](evidence, Oracle(oracle, count), count).selection
    return replace(selection, facts={**selection.facts, "method": method})
