"""Convert tensors, arrays, a torch Dataset or a DataLoader to labelled images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms.v2.functional import pil_to_tensor

from deeppatch.data.files import StoredPixels, to_rgb
from deeppatch.data.images import Images, to_float
from deeppatch.errors import DataProblem

# a pair of pixels (N, 3, H, W) and labels (N,); a data set of pairs (image, label); or a loader of batches of pairs
MOST_CLASSES = 100_000  # as many as labels may number where the classes are not named
DataInput = Images | tuple[Any, Any] | Dataset[Any] | DataLoader[Any]


def to_images(given: DataInput, name: str) -> Images:
    """Return labelled images in memory, on the CPU; images that are `Images` already are returned as they are.

    Args:
        given: `Images`; a pair of pixels and labels, as tensors or arrays; a torch Dataset whose items are pairs of an
            image (tensor, array or PIL image) and a label; or a DataLoader whose batches are pairs of tensors. A loader
            that shuffles is read in the order of its data set.
        name: The name of the images in messages.

    Returns:
        Pixels uint8 where all have 8 bits, else float32 in [0, 1]; grey images repeated to three channels.

    Raises:
        DataProblem: When pixels are outside [0, 1], images differ in size, or labels are not whole numbers.
    """
    if isinstance(given, Images):
        return given
    if isinstance(given, DataLoader):
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed from the global generator
            pairs: list[Any] = [_pair(batch, name) for batch in _in_order(given)]
        pixels = [_pixels(batch, name) for batch, _labels in pairs]
        labels = [_labels(found, name) for _batch, found in pairs]
    elif isinstance(given, (tuple, list)):
        whole, found = _pair(given, name)
        pixels, labels = [_pixels(whole, name)], [_labels(found, name)]
    elif isinstance(given, Dataset):
        pairs = [_pair(item, name) for item in _items(given)]
        pixels = [_pixels(_single_image(image), name) for image, _label in pairs]
        labels = [_labels(torch.as_tensor(label).reshape(-1), name) for _image, label in pairs]
    else:
        raise DataProblem(f"{name}: give (pixels, labels), a torch Dataset or a DataLoader, not {type(given).__name__}")
    if not labels:
        raise DataProblem(f"{name} holds no images")
    same_size(pixels, name)
    if len({part.dtype for part in pixels}) > 1:
        pixels = [to_float(part) for part in pixels]
    return _images(torch.cat(pixels), torch.cat(labels), name)


def same_size(parts: Iterable[Tensor | StoredPixels], name: str) -> None:
    """Raise DataProblem when the images of several parts (N, 3, H, W) differ in size."""
    sizes = sorted({tuple(part.shape[-2:]) for part in parts})
    if len(sizes) > 1:
        found = " and ".join(f"{height}x{width}" for height, width in sizes[:2])
        raise DataProblem(f"{name}: images differ in size ({found} pixels); resize them to one size")


def class_names(
    given: Sequence[DataInput | None], classes: Sequence[str] | int | None, parts: list[Images]
) -> list[str]:
    """Return the names of the classes: as given, as a data set has them in `classes`, or the numbers of the labels.

    DataProblem when a label is not 0 to classes - 1.
    """
    if classes is None:
        own = [getattr(each.dataset if isinstance(each, DataLoader) else each, "classes", None) for each in given]
        classes = next((list(names) for names in own if names), None)
    highest = max(int(part.labels.max()) for part in parts)
    if classes is None:
        if highest >= MOST_CLASSES:
            raise DataProblem(f"labels reach to {highest}; they start at 0, one number for each class")
        classes = highest + 1
    names = list(map(str, range(classes))) if isinstance(classes, int) else list(map(str, classes))
    lowest = min(int(part.labels.min()) for part in parts)
    if lowest < 0:
        raise DataProblem(f"labels reach from {lowest} to {highest}; they start at 0, one number for each class")
    if highest >= len(names):
        raise DataProblem(
            f"labels reach from {lowest} to {highest}; with {len(names)} classes they are 0 to {len(names) - 1}"
        )
    return names


def _in_order(loader: DataLoader[Any]) -> Iterable[Any]:
    if not isinstance(loader.sampler, RandomSampler) or loader.sampler.replacement or loader.batch_size is None:
        return loader
    return DataLoader(loader.dataset, loader.batch_size, num_workers=loader.num_workers, collate_fn=loader.collate_fn)


def _items(data: Dataset[Any]) -> Iterator[Any]:
    if hasattr(data, "__len__"):
        return (data[index] for index in range(len(data)))
    return iter(data)


def _pair(item: Any, name: str) -> tuple[Any, Any]:
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise DataProblem(f"{name}: an item must be a pair of image and label, not {type(item).__name__}")
    return item[0], item[1]


def _single_image(image: Any) -> Tensor:
    """Return one image as a tensor (1, C, H, W) or (1, H, W)."""
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):  # conversion would clip, not scale
            raise DataProblem("an image has more than 8 bits a channel; convert it to 8 bits")
        return pil_to_tensor(to_rgb(image)).unsqueeze(0)
    return _channels_first(image).unsqueeze(0)


def _channels_first(values: Any) -> Tensor:
    """Return a tensor as it is, and an array (..., H, W, C) with its channels in front of height and width."""
    if isinstance(values, Tensor):
        return values.detach().cpu()
    array = np.asarray(values)
    if array.ndim > 2 and array.shape[-1] in (1, 3) and array.shape[-3] not in (1, 3):
        array = np.moveaxis(array, -1, -3)
    return torch.from_numpy(np.ascontiguousarray(array))


def _pixels(values: Any, name: str) -> Tensor:
    """Return pixels of three channels, uint8 or float32 in [0, 1]."""
    pixels = _channels_first(values)
    if pixels.ndim == 3:  # grey images without a dimension of channels
        pixels = pixels.unsqueeze(1)
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise DataProblem(
            f"{name}: pixels have shape {tuple(pixels.shape)}; give (N, 3, H, W), or (N, 1, H, W) for grey"
        )
    if not pixels.numel():
        raise DataProblem(f"{name} holds no images")
    return _unscaled(pixels.expand(-1, 3, -1, -1), name)


def _unscaled(pixels: Tensor, name: str) -> Tensor:
    """Return pixels of any type as uint8, or as float32 in [0, 1]."""
    if pixels.dtype == torch.uint8:
        return pixels
    if pixels.dtype == torch.bool:
        return pixels.float()
    if pixels.is_complex():
        raise DataProblem(f"{name}: pixels are complex numbers; give uint8, or floating point from 0 to 1")
    if pixels.dtype in (torch.uint16, torch.uint32, torch.uint64):  # for which torch finds no smallest number
        pixels = pixels.long()
    lowest, highest = pixels.min().item(), pixels.max().item()
    if not pixels.is_floating_point():
        if lowest < 0 or highest > 255:
            raise DataProblem(f"{name}: pixels reach from {lowest} to {highest}; whole numbers must be 0 to 255")
        return pixels.to(torch.uint8)
    if not (lowest >= 0 and highest <= 1):  # false for what is not a number, too
        raise DataProblem(
            f"{name}: pixels reach from {lowest:.3g} to {highest:.3g}, not 0 to 1; give them without normalisation, "
            "and put mean and standard deviation into Classifier(network, mean, std)"
        )
    return pixels.float()


def _labels(values: Any, name: str) -> Tensor:
    labels = torch.as_tensor(values).detach().cpu()
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DataProblem(
            f"{name}: labels must be class indices, whole numbers (N,), not {tuple(labels.shape)} {labels.dtype}"
        )
    return labels.long()


def _images(pixels: Tensor, labels: Tensor, name: str) -> Images:
    """Return pixels and labels together; float pixels that are 8-bit values divided by 255 become uint8."""
    if len(pixels) != len(labels):
        raise DataProblem(f"{name}: {len(pixels)} images have {len(labels)} labels")
    if pixels.is_floating_point():
        whole = (pixels * 255).round()
        if torch.equal(whole / 255, pixels):
            pixels = whole.to(torch.uint8)
    return Images(pixels.contiguous(), labels)
