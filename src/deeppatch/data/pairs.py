"""Fixed pairs of an image and a level, whose pixels stay the same while images are scored, chosen and trained on."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from deeppatch import runtime
from deeppatch.data import views
from deeppatch.data.corruptions import Corruption, depends_on_batch, families
from deeppatch.data.epochs import ShardedEpoch, within_budget
from deeppatch.data.images import Images, to_float
from deeppatch.data.views import View


def fixed_draw(images: Images, corruption: Corruption, batch_size: int, seed: int) -> View:
    """Return every image once, at the level of one draw: clean with probability 1/2, else uniform over the levels.

    >>> from deeppatch.data.corruptions import GaussianBlur
    >>> images = Images(torch.zeros(6, 3, 4, 4, dtype=torch.uint8), torch.zeros(6, dtype=torch.long))
    >>> fixed_draw(images, GaussianBlur((1.0, 2.0)), 4, seed=3).index.tolist()
    [0, 1, 2, 3, 4, 5]
    """
    levels = views.random_levels(len(images), families(corruption), runtime.generator(seed, "one-draw"))
    device = images.labels.device
    index = torch.arange(len(images), device=device)
    return View(images, corruption, index, levels.to(device), batch_size, purpose="fixed draw")


def of_rows(view: View, rows: Tensor) -> View:
    """Return some pairs of a view by their rows, int64 (K,), with the pixels that they have in it.

    Where pixels depend on the batch, those of the chosen rows are kept in memory.
    """
    if not depends_on_batch(view.corruption):
        return views.ordered(view, rows)
    wanted = torch.zeros(len(view.index), dtype=torch.bool, device=rows.device)
    wanted[rows] = True
    kept = [pixels[own] for (pixels, _), own in zip(view, wanted.split(view.batch_size), strict=True)]
    place = wanted.cumsum(0) - 1
    images = Images(torch.cat(kept)[place[rows]], view.labels[rows])
    index = torch.arange(len(rows), device=rows.device)
    return replace(view, images=images, corruption=None, index=index, levels=view.levels[rows])


def after_clean(images: Images, chosen: View) -> View:
    """Return every image clean, and after them chosen pairs of the same images."""
    device = images.labels.device
    index = torch.arange(len(images), device=device)
    clean = torch.zeros_like(index)
    if chosen.images is images:
        return replace(chosen, index=torch.cat([index, chosen.index]), levels=torch.cat([clean, chosen.levels]))
    # their pixels are kept in memory, so the clean ones must be too
    pixels = torch.cat([to_float(images.pixels[:]), chosen.images.pixels[chosen.index]])
    both = Images(pixels, torch.cat([images.labels, chosen.labels]))
    levels = torch.cat([clean, chosen.levels])
    return View(both, None, torch.arange(len(both), device=device), levels, chosen.batch_size)


def shuffled_epochs(view: View, *, epochs: int, passes: int | None, batch_size: int, seed: int) -> list[ShardedEpoch]:
    """Return epochs over all pairs of a view, each in an order of its own: that of `views.Shuffled` with this seed."""

    def whole(epoch: int) -> View:
        order = torch.randperm(len(view.index), generator=runtime.generator(seed, "epoch", epoch))
        return replace(views.ordered(view, order.to(view.index.device)), batch_size=batch_size)

    return within_budget(whole, epochs=epochs, passes=passes, batch_size=batch_size)


def half_epochs(
    view: View, clean: int, *, epochs: int, passes: int | None, batch_size: int, seed: int
) -> list[ShardedEpoch]:
    """Return epochs of as many pairs as a view has clean ones, half of them clean and half of the others, shuffled.

    The first `clean` rows of the view are the clean ones. An epoch has half of them, and the others as often as that
    takes: all of them before one comes again.
    """
    others = len(view.index) - clean

    def whole(epoch: int) -> View:
        generator = runtime.generator(seed, "half", epoch)
        rounds = -(-(clean // 2) // others)
        again = [torch.randperm(others, generator=generator) for _ in range(rounds)]
        rows = torch.cat(
            [
                torch.randperm(clean, generator=generator)[: clean - clean // 2],
                clean + torch.cat([torch.empty(0, dtype=torch.long), *again])[: clean // 2],
            ]
        )
        rows = rows[torch.randperm(len(rows), generator=generator)]
        return replace(views.ordered(view, rows.to(view.index.device)), batch_size=batch_size)

    return within_budget(whole, epochs=epochs, passes=passes, batch_size=batch_size)
