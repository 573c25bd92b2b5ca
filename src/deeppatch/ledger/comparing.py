"""Compare any classifiers on the same images: clean, at each degradation and severity, and on a mixed stream."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from deeppatch.cache import ContentCache
from deeppatch.data import corruptions, views
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.errors import UserError, check_positive
from deeppatch.evaluation import check_classifier
from deeppatch.ledger.identity import network_digest
from deeppatch.ledger.ledger import Ledger
from deeppatch.ledger.measuring import measure
from deeppatch.ledger.records import Network
from deeppatch.ledger.streams import ledger_streams
from deeppatch.zoo.classifier import device_of


def compare(
    networks: Mapping[str, nn.Module],
    data: Data | Images,
    corruption: Any = None,
    *,
    base: str | None = None,
    held_out: Any = None,
    cells: ContentCache | Path | str | None = None,
    batch_size: int = 256,
    amp: bool = False,
    seed: int = 2021,
    images_digest: str | None = None,
) -> Ledger:
    """Measure classifiers on the same test images, and keep every answer, so that later calls measure what is new.

    Degraded images are made once and go through all networks. With `cells`, what a network answered on a view is a
    file there, named by digests of the network and of the view: a network or a degradation that is added costs its own
    cells, and a call that was killed has lost at most one view.

    Args:
        networks: Classifiers of pixels (N, 3, H, W) in [0, 1], by name.
        data: Labelled images, or data, of which the test part is read.
        corruption: What `deeppatch.corruption` takes or returns; without one, only clean images are measured.
        base: The name of the network that the others are compared with (default: the first).
        held_out: Degradations that nothing was trained or calibrated on; they are marked, and not in the mixed stream.
        cells: A folder for the cells, or a `ContentCache` (default: none are kept).
        batch_size: The number of images in a batch.
        amp: Whether networks run in bfloat16.
        seed: The seed of the mixed stream, in which each image is degraded with probability 1/2.
        images_digest: A digest of pixels and labels, where it is known already.

    Returns:
        A `Ledger`. Its `table()` has a row for each network, its `frame()` a row for each measure. Networks whose
        answer for an image depends on other images of a batch have nothing on the mixed stream.

    Raises:
        UserError: When there are no networks or images, none is called `base`, one is not a classifier of these images,
            or a degradation is held out and not.

    >>> import torch
    >>> first, second = (nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)) for _ in range(2))
    >>> images = Images(torch.rand(20, 3, 8, 8), torch.arange(20) % 4)
    >>> ledger = compare({"pretrained": first, "repaired": second}, images, "gaussian-blur")
    >>> list(ledger.networks), [view.name for view in ledger.views][:3], len(ledger.outcomes)
    (['pretrained', 'repaired'], ['clean', 's=0.5', 's=1'], 16)
    """
    check_positive(batch_size=batch_size)
    reference = next(iter(networks), "") if base is None else base
    if reference not in networks:
        raise UserError(f"base={base!r}: there are the networks {', '.join(networks) or '(none)'}")
    test = data.test if isinstance(data, Data) else data
    if not len(test):
        raise UserError("there are no test images to compare networks on")
    classes = data.classes if isinstance(data, Data) else tuple(map(str, range(int(test.labels.max()) + 1)))
    for name, network in networks.items():
        try:
            check_classifier(network, views.to_float(test.pixels[:2]).to(device_of(network)), len(classes))
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
    chosen = [None if each is None else corruptions.corruption(each, seed=seed) for each in (corruption, held_out)]
    images = test.to(device_of(networks[reference]))
    streams = ledger_streams(images, *chosen, batch_size=batch_size, seed=seed, images_digest=images_digest)
    digests = {name: network_digest(network) for name, network in networks.items()}
    cache = ContentCache(Path(cells)) if isinstance(cells, (str, Path)) else cells
    outcomes = measure(networks, streams, digests, cache=cache, amp=amp)
    rows = {
        name: Network(
            name,
            digests[name],
            parameters=sum(each.numel() for each in network.parameters()),
            bytes=0 if name == reference else None,
        )
        for name, network in networks.items()
    }
    return Ledger(reference, rows, tuple(stream.view for stream in streams), outcomes, classes)
