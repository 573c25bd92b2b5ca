"""Images that a repair changes the answer for: which ones are shown, and their pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deeppatch.data import views
from deeppatch.data.corruptions import Corruption, depends_on_batch
from deeppatch.data.images import Images
from deeppatch.errors import UserError
from deeppatch.ledger.ledger import Ledger
from deeppatch.ledger.records import CLEAN, MIXED
from deeppatch.report.contact_sheet import embedded

# returns pixels, uint8 (M, 3, H, W), of some rows of a view
Pictures = Callable[[str, Sequence[int]], Tensor]


@dataclass(frozen=True)
class Example:
    """An image for which two networks differ: where it is, its true class, and what both answer, how surely."""

    view: str
    row: int
    image: int
    true: str
    before: str
    before_confidence: float
    after: str
    after_confidence: float


def examples(ledger: Ledger, network: str, *, repaired: bool, count: int = 10, seed: int = 2021) -> list[Example]:
    """Return images that a network answers right and the base wrong, or newly wrong ones, drawn by seed.

    Repaired ones are drawn among all rows of all degraded views; of newly wrong ones half are drawn among clean images,
    where there are so many. No image is shown twice.

    Args:
        ledger: The ledger.
        network: The network that is compared with the base.
        repaired: Whether the network repairs these images; otherwise it breaks them.
        count: The number of images.
        seed: The seed of the draw.

    >>> from deeppatch.ledger.records import LedgerView, Network, Outcomes
    >>> zero, labels = np.zeros(3), np.array([0, 1, 2])
    >>> view = LedgerView("clean", "clean", 0, "", False, labels, np.arange(3))
    >>> answers = {name: Outcomes(np.array(own), zero, zero, zero) for name, own in
    ...            {"old": [0, 1, 0], "new": [0, 0, 2]}.items()}
    >>> found = {(name, "clean"): own for name, own in answers.items()}
    >>> ledger = Ledger("old", {name: Network(name, "") for name in answers}, (view,), found, ("cat", "dog", "owl"))
    >>> [(each.true, each.before, each.after) for each in examples(ledger, "new", repaired=True)]
    [('owl', 'cat', 'owl')]
    """
    both = (ledger.base, network)
    single = [
        view.name
        for view in ledger.views
        if view.kind != MIXED and all((name, view.name) in ledger.outcomes for name in both)
    ]
    degraded = [name for name in single if name != CLEAN]
    order = np.random.default_rng([seed, int(repaired)])
    if repaired or not degraded:
        return _drawn(ledger, network, degraded or single, repaired, count, order)
    found = _drawn(ledger, network, [CLEAN], repaired, count - count // 2, order)
    return found + _drawn(ledger, network, degraded, repaired, count - len(found), order, found)


def _drawn(
    ledger: Ledger,
    network: str,
    among: Sequence[str],
    repaired: bool,
    count: int,
    order: np.random.Generator,
    shown: Sequence[Example] = (),
) -> list[Example]:
    """Return up to `count` changed rows of some views, of other images than those that are shown already."""
    places = []
    for number, name in enumerate(among):
        before, after = ledger.correct(ledger.base, name), ledger.correct(network, name)
        rows = np.flatnonzero(after & ~before if repaired else before & ~after)
        places.append(np.stack([np.full_like(rows, number), rows], 1))
    all_places = np.concatenate(places) if places else np.empty((0, 2), int)
    seen = {each.image for each in shown}
    found: list[Example] = []
    for number, row in order.permutation(all_places):
        example = _example(ledger, network, among[number], int(row))
        if example.image not in seen and len(found) < count:
            seen.add(example.image)
            found.append(example)
        if len(found) == count:
            break
    return found


def _example(ledger: Ledger, network: str, name: str, row: int) -> Example:
    view, before, after = ledger.view(name), ledger.outcomes[ledger.base, name], ledger.outcomes[network, name]
    answers = [(ledger.classes[int(each.prediction[row])], float(each.confidence[row])) for each in (before, after)]
    return Example(name, row, int(view.image[row]), ledger.classes[int(view.labels[row])], *answers[0], *answers[1])


def pictures_of(
    images: Images,
    corruption: Corruption | None = None,
    held_out: Corruption | None = None,
    *,
    batch_size: int = 256,
    seed: int = 2021,
    left_out: np.ndarray | None = None,
) -> Pictures:
    """Return a function that makes rows of a ledger's views again, as uint8 (M, 3, H, W), by the name of the view.

    The arguments are those with which `compare` has measured the ledger, and `left_out` the numbers of the images
    without which it is, as in `Ledger.without`. Where degraded images do not depend on the rest of their batch, only
    the rows that are asked for are degraded.

    >>> images = Images(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4))
    >>> pictures_of(images)("clean", [2, 3]).shape
    torch.Size([2, 3, 8, 8])
    """

    def made(name: str, rows: Sequence[int]) -> Tensor:
        view = _view_called(name, images, corruption, held_out, batch_size, seed)
        if left_out is not None:
            kept = np.flatnonzero(~np.isin(view.index.cpu().numpy(), left_out))
            rows = [int(kept[row]) for row in rows]
        index = torch.as_tensor(rows, device=view.index.device)
        if not depends_on_batch(view.corruption):
            pixels = torch.cat([pixels for pixels, _labels in views.ordered(view, index)])
            return _bytes(pixels)
        found: dict[int, Tensor] = {}
        for batch, (pixels, _labels) in enumerate(view):
            first = batch * batch_size
            found |= {row: pixels[row - first].cpu() for row in rows if first <= row < first + len(pixels)}
            if len(found) == len(set(rows)):
                break
        return _bytes(torch.stack([found[row] for row in rows]))

    return made


def _view_called(
    name: str, images: Images, corruption: Corruption | None, held_out: Corruption | None, batch_size: int, seed: int
) -> views.View:
    if name == CLEAN:
        return views.clean(images, batch_size)
    if name == MIXED and corruption is not None:
        return views.mixed_stream(images, corruption, batch_size, seed)
    for each in (corruption, held_out):
        if each is not None and name in each.level_names:
            return views.levels_view(images, each, [each.level_names.index(name) + 1], batch_size)
    raise UserError(f"no degradation has the level {name}; give those with which the ledger was measured")


def _bytes(pixels: Tensor) -> Tensor:
    return (pixels.cpu() * 255).round().clamp(0, 255).to(torch.uint8)


def as_data_urls(pixels: Tensor | np.ndarray) -> list[str]:
    """Return images, uint8 (M, 3, H, W), as data URLs: small ones as PNG, larger ones as JPEG thumbnails."""
    rows = np.ascontiguousarray(torch.as_tensor(pixels).permute(0, 2, 3, 1).cpu().numpy())
    return [embedded(Image.fromarray(row)) for row in rows]
