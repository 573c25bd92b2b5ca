"""Estimate a patch's normalisation statistics again on unlabelled images from the field, and freeze them."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.data.files import StoredPixels
from deeppatch.data.images import Images, to_float
from deeppatch.errors import DataProblem, UserError, check_positive
from deeppatch.patching.patch_file import Patch, apply, extract
from deeppatch.progress import track
from deeppatch.zoo.classifier import device_of

BATCH = 240


@torch.no_grad()
def reestimate_statistics(
    model: nn.Module,
    patch: Patch,
    images: Images | Tensor | StoredPixels,
    *,
    batch_size: int = BATCH,
    seed: int = 2021,
    amp: bool = False,
) -> Patch:
    """Return a patch with the same filters, whose normalisation statistics are those of other images.

    The images run once through the patched network, in which only the patch's normalisations are in training mode. The
    statistics become the mean over batches of the means and of the unbiased variances of each batch, and stay so: an
    answer does not depend on its neighbours. Normalisations before the first patched layer, which both networks share,
    stay as they are.

    Args:
        model: The classifier that the patch was trained on; it is not changed.
        patch: The patch; it is not changed.
        images: The images; labels are not read. Pixels (N, 3, H, W) are uint8, or float in [0, 1].
        batch_size: The number of images in a batch. All batches get about as many.
        seed: The seed of the order in which images are put into batches.
        amp: Whether the network runs in bfloat16.

    Returns:
        The patch, of the same kind and for the same model; its `about` says how many images the statistics are of.

    Raises:
        UserError: When there are fewer than two images, or the patch has no normalisation with statistics.
        StaleArtifact: When the patch was trained on another model.

    >>> from deeppatch.patching.training import train_patch
    >>> from deeppatch.data.dataset import Data
    >>> norm = nn.BatchNorm2d(4)
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> pixels, labels = torch.rand(40, 3, 12, 16), torch.arange(40) % 2
    >>> data = Data.of((pixels, labels), (pixels, labels))
    >>> patch = train_patch(model, data, "gaussian-blur", {"0": [1, 2]}, epochs=1)
    >>> again = reestimate_statistics(model, patch, pixels / 2)
    >>> again.channels == patch.channels, bool((again.tensors["units/0/rows"] == patch.tensors["units/0/rows"]).all())
    (True, True)
    """
    check_positive(batch_size=batch_size)
    pixels = images.pixels if isinstance(images, Images) else images
    count, device = int(pixels.shape[0]), device_of(model)
    if count < 2:
        raise DataProblem(f"{count} unlabelled images: statistics need at least two, better some hundreds")
    patched = copy.deepcopy(model).eval()
    attachment = apply(patched, patch, to_float(pixels[:2]).to(device))
    norms = [*attachment.norms.values(), *(norm for unit in attachment.units.values() for norm in _norms_of(unit))]
    if not norms:
        raise UserError("no batch normalisation runs behind this patch, so there are no statistics to estimate again")
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.training = True
    order = torch.randperm(count, generator=runtime.generator(seed, "statistics"))
    batches = order.tensor_split(max(1, round(count / batch_size)))
    for index in track(batches, len(batches), "estimating statistics"):
        with runtime.autocast(device, amp), runtime.explained_single_images():
            patched(to_float(pixels[index]).to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    about = {**patch.about, "statistics": {"images": count, "batches": len(batches)}}
    return replace(extract(attachment, patch.base, about=about), history=patch.history)


def _norms_of(unit: nn.Module) -> list[nn.BatchNorm2d]:
    """Return the normalisations of a correction unit's own convolutions."""
    return [module for module in unit.modules() if isinstance(module, nn.BatchNorm2d)]
