"""Streams of degraded images in the order in which a deployed network meets them: by type, mixed, or by class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deeppatch import runtime
from deeppatch.data.corruptions import Corruption
from deeppatch.data.images import Images
from deeppatch.data.splits import subset
from deeppatch.data.views import View
from deeppatch.errors import UserError

CONCENTRATION = 0.1
SMALLEST_CHUNK = 10
MOST_DRAWS = 10_000


@dataclass(frozen=True)
class DegradedStream:
    """Degraded images in a fixed order; batches do not cross the borders of parts.

    Args:
        name: The name of the stream.
        parts: The images in order. A part is a view of the same images; degraded images are made batch by batch.
        levels: The levels that the parts have, in order (K,).
        resets: Whether a method that adapts starts anew before each part.
    """

    name: str
    parts: tuple[View, ...]
    levels: tuple[int, ...]
    resets: bool

    def __len__(self) -> int:
        return sum(len(part.index) for part in self.parts)

    @property
    def smallest_batch(self) -> int:
        """The number of images in the smallest batch."""
        return min(size for part in self.parts for size in part.sizes)


def choose_images(images: Images, count: int, seed: int) -> Tensor:
    """Return the indices (count,) of a class-stratified subset in ascending order; all where there are no more.

    Where there are more classes than images to choose, they are drawn from all.
    """
    if count < len(images.labels.unique()):
        return torch.randperm(len(images), generator=runtime.generator(seed, "stream", "images"))[:count].sort().values
    numbered = Images(torch.arange(len(images)), images.labels.cpu())  # numbers in place of pixels
    return torch.as_tensor(subset(numbered, count, seed, "stream").pixels[:])


def stream(
    name: str,
    images: Images,
    corruption: Corruption,
    *,
    levels: Sequence[int] | None = None,
    single: int = 20,
    batch_size: int = 200,
    seed: int = 2021,
) -> DegradedStream:
    """Return a stream of images, each at every level.

    Args:
        name: `reset`: one level after the other, each shuffled, and a method that adapts starts anew at each;
            `continual`: the same without starting anew; `mixed`: all levels shuffled together; `ordered`: one level
            after the other, the classes of each correlated (`ordered_chunks`); `single`: as `reset`, image by image.
        images: The images, on the device of the networks.
        corruption: The degradation.
        levels: The levels in order; 0 is clean (default: all levels of the degradation from 1 on).
        single: The number of images at each level of the stream `single`.
        batch_size: The number of images in a batch of the other streams.
        seed: The seed of all orders. Those of `reset` and `continual` are the same.

    Raises:
        UserError: When there is no such stream, or an ordered stream has too few images.

    >>> from deeppatch.data.corruptions import GaussianBlur
    >>> images = Images(torch.zeros(6, 3, 8, 8, dtype=torch.uint8), torch.arange(6) % 2)
    >>> found = stream("continual", images, GaussianBlur((1.0, 2.0)), batch_size=4)
    >>> len(found.parts), len(found), found.resets
    (2, 12, False)
    """
    if name not in STREAMS:
        raise UserError(f"there is no stream called {name}; choose from {', '.join(STREAMS)}")
    chosen = tuple(range(1, len(corruption) + 1)) if levels is None else tuple(levels)
    if wrong := [level for level in chosen if not 0 <= level <= len(corruption)]:
        raise UserError(f"level {wrong[0]}: this degradation has levels 0 (clean) to {len(corruption)}")
    if name == "single":
        kept, batch_size = choose_images(images, single, seed), 1
    else:
        kept = torch.arange(len(images))
    device, parts = images.labels.device, []
    for index, level in STREAMS[name](kept, images.labels.cpu()[kept], chosen, seed):
        parts.append(View(images, corruption, index.to(device), level.to(device), batch_size))
    return DegradedStream(name, tuple(parts), chosen, name in ("reset", "single"))


Part = tuple[Tensor, Tensor]  # indices (M,) and levels (M,) of the images of a part, in order


def _by_level(kept: Tensor, labels: Tensor, levels: tuple[int, ...], seed: int) -> Iterator[Part]:
    for level in levels:
        order = torch.randperm(len(kept), generator=runtime.generator(seed, "stream", level))
        yield kept[order], torch.full_like(kept, level)


def _mixed(kept: Tensor, labels: Tensor, levels: tuple[int, ...], seed: int) -> Iterator[Part]:
    order = torch.randperm(len(kept) * len(levels), generator=runtime.generator(seed, "stream", "mixed"))
    yield kept.repeat(len(levels))[order], torch.tensor(levels).repeat_interleave(len(kept))[order]


def _ordered(kept: Tensor, labels: Tensor, levels: tuple[int, ...], seed: int) -> Iterator[Part]:
    for level in levels:
        draw = runtime.numpy_generator(seed, "stream", "ordered", level)
        order = torch.from_numpy(np.concatenate(ordered_chunks(labels.numpy(), draw)))
        yield kept[order], torch.full_like(kept, level)


STREAMS: dict[str, Callable[[Tensor, Tensor, tuple[int, ...], int], Iterator[Part]]] = {
    "reset": _by_level,
    "continual": _by_level,
    "mixed": _mixed,
    "ordered": _ordered,
    "single": _by_level,
}


def ordered_chunks(
    labels: np.ndarray,
    generator: np.random.Generator,
    *,
    concentration: float = CONCENTRATION,
    smallest: int = SMALLEST_CHUNK,
) -> list[np.ndarray]:
    """Order images so that neighbours tend to be of one class, as C chunks of indices for C classes.

    The images of each class are divided among the chunks by shares from a Dirichlet distribution; chunks that hold n/C
    images already get no more. All is drawn again until every chunk has the smallest number of images. Within a chunk
    all images of a class stand together, and classes are in random order. The method is that of the published streams
    with correlated classes (Gong et al., NOTE, NeurIPS 2022, arXiv 2208.05117, section 4).

    Args:
        labels: The labels (n,).
        generator: All random numbers are drawn from it.
        concentration: The parameter of the Dirichlet distribution, above 0; small values correlate more.
        smallest: The smallest number of images of a chunk.

    Returns:
        The indices of the images of each chunk; together they are a permutation.

    Raises:
        UserError: When there are too few images.
    """
    classes = np.unique(labels)
    count, number = len(labels), len(classes)
    explained = UserError(
        f"{count} images of {number} classes are too few for an ordered stream, whose {number} chunks have at least "
        f"{smallest} images each; give {2 * smallest * number} for each degradation, or leave out this stream"
    )
    if count < smallest * number:
        raise explained
    for _ in range(MOST_DRAWS):
        chunks = _draw_chunks(labels, classes, generator, concentration)
        if chunks is not None and min(sum(map(len, chunk)) for chunk in chunks) >= smallest:
            return [
                np.concatenate([chunk[place] for place in generator.permutation(number) if len(chunk[place])])
                for chunk in chunks
            ]
    raise explained


def _draw_chunks(
    labels: np.ndarray, classes: np.ndarray, generator: np.random.Generator, concentration: float
) -> list[list[np.ndarray]] | None:
    """Draw the indices of each class in each chunk once; None where no chunk with room has got a share above 0."""
    number = len(classes)
    chunks: list[list[np.ndarray]] = [[] for _ in range(number)]
    for label in classes:
        own = generator.permutation(np.flatnonzero(labels == label))
        shares = generator.dirichlet(np.full(number, concentration))
        shares[[sum(map(len, chunk)) >= len(labels) / number for chunk in chunks]] = 0
        if not shares.sum() > 0:
            return None
        ends = np.floor(np.cumsum(shares / shares.sum()) * len(own)).astype(int)
        for chunk, part in zip(chunks, np.split(own, ends[:-1]), strict=True):
            chunk.append(part)
    return chunks
