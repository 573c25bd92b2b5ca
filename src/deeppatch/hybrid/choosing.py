"""Choose which images of a pool to label."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from deeppatch.data.dataset import Data
from deeppatch.data.pool import check_pool
from deeppatch.errors import check_counts
from deeppatch.hybrid.budget import affordable
from deeppatch.hybrid.choice_settings import ChoiceSettings
from deeppatch.hybrid.oracle import Labels, Oracle
from deeppatch.hybrid.rounds import choose_further
from deeppatch.hybrid.selection import Selection
from deeppatch.hybrid.selection_inputs import SelectionInputs
from deeppatch.hybrid.selection_methods import Choice, chosen_by, known_method
from deeppatch.zoo.classifier import device_of


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
    settings: ChoiceSettings | None = None,
    earlier: Selection | None = None,
    batch_size: int = 256,
    amp: bool = False,
    seed: int = 2021,
) -> Selection:
    """Choose which images of a pool to label, and which to learn from without labels.

    Args:
        model: A classifier of float pixels (N, 3, H, W) in [0, 1] that ends in a linear layer; it is not changed.
        pool_pixels: Images without labels, uint8 (N, 3, H, W).
        data: The data that the model was trained on; `train` is read, and by uherding `val`, to calibrate predictions.
        budget: The number of labels to buy, or a share of the pool such as "1%".
        method: `hybrid` (Li, Chen and Xu, "HybridRepair", ISSTA 2022), or another key of METHODS.
        oracle: The labels of the pool, int64 (N,), or a function from indices (B,) to labels (B,), which is called
            once, for the chosen images. With None, labels are given later, by `selection.with_labels`.
        views: The number of AugMix views of each image, in addition to itself (hybrid and ssl-consistency).
        encode: A function from uint8 pixels to the features (N, D) by which coreset, typiclust, uherding and hybrid
            compare images (default: the penultimate features of the model).
        settings: The threshold tau, the size of clusters and the start of coreset (default: as published, but for the
            last).
        earlier: A selection from this pool with its labels, to which this one is added: so labels are bought in
            rounds, each by the network that those so far have repaired.
        batch_size: The number of images in a batch.
        amp: Whether forward passes run in bfloat16.
        seed: The seed of all random choices.

    Returns:
        The selection: `.bought` are the indices to label, in the order of the method, and `.labels` their labels,
        -1 where they are unknown.

    Raises:
        UserError: When the method is unknown, or the budget allows no label, or more than the pool has, or a label of
            the earlier selection is missing.

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
    check_pool(pool_pixels, data)
    check_counts(views=views, batch_size=batch_size)
    device = device_of(model)
    train = data.train.pixels[:].to(device)
    inputs = SelectionInputs(
        model,
        pool_pixels.to(device),
        train,
        seed,
        views,
        encode,
        batch_size,
        amp,
        train_labels=data.train.labels,
        val=data.val,
        settings=settings or ChoiceSettings(),
    )
    if earlier is not None:
        earlier.check(pool_pixels, len(data.classes))
        found = choose_further(inputs, earlier, budget, method=method, oracle=oracle)
    else:
        found = choose(inputs, budget, method=method, oracle=oracle).selection
    return found.chosen_from(pool_pixels)


def choose(
    inputs: SelectionInputs, budget: int | str, *, method: str = "hybrid", oracle: Labels | None = None
) -> Choice:
    """Choose as `choose_labels` does, and return also why each image was chosen.

    Args:
        inputs: The model, the pool and the training images, all on one device. What a method computes of them, such as
            `inputs.embeddings`, can be read afterwards without computing it again.
        budget: The number of labels to buy, or a share of the pool such as "1%".
        method: A key of METHODS.
        oracle: The labels of the pool, int64 (N,), or a function from indices (B,) to labels (B,), or None.

    Returns:
        The selection with, for each chosen image, the reason and its cluster, and with the predictions for the pool.

    Raises:
        UserError: When the method is unknown, or the budget allows no label, or more than the pool has.

    >>> import torch
    >>> pixels = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    >>> choice = choose(SelectionInputs(network, pixels[20:], pixels[:20], seed=2021), 2, method="random")
    >>> choice.reasons, choice.labels_bought, tuple(choice.predictions.shape)
    (['drawn at random', 'drawn at random'], 2, (40, 2))
    """
    known_method(method)
    count = affordable(budget, len(inputs.pool))
    return chosen_by(method, inputs, Oracle(oracle, count, images=len(inputs.pool)), count)
