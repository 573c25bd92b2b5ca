"""Load a network of the zoo with published, given or random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from deeppatch.errors import UserError, WrongWeights
from deeppatch.zoo import weights as files
from deeppatch.zoo.classifier import Classifier
from deeppatch.zoo.entries import CLASSES
from deeppatch.zoo.normalisation import choose_normalisation
from deeppatch.zoo.resolve import resolve


def load_classifier(
    name: str,
    classes: int | str = 10,
    weights: Path | str | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 2021,
) -> Classifier:
    """Load a network of the zoo as a classifier in eval mode, on the CPU.

    Args:
        name: The name of a network: of the zoo (`deeppatch.zoo.names.ARCHITECTURE_NAMES`), such as `resnet32`;
            `timm:NAME`, `torchvision:NAME`; or `package.module:function`, a function of the number of classes.
        classes: The number of classes, or the name of the data set whose published weights are loaded, which
            are downloaded if they are absent.
        weights: A .safetensors file or a torch checkpoint with a state dict to load instead. Without a file and
            without a data set's name the network is initialised by `seed`.
        mean: The mean of each channel (default: that of the file, else that of the published weights, else that
            of the network's library, else 0).
        std: The standard deviation of each channel (default: likewise, else 1).
        seed: The seed of random weights.

    Raises:
        UserError: When there is no such network or file, no weights are published, or weights do not fit the network.

    >>> import torch
    >>> model = load_classifier("resnet8", 10)
    >>> tuple(model(torch.rand(2, 3, 20, 28)).shape)
    (2, 10)
    """
    architecture = resolve(name)
    if isinstance(classes, str) and classes not in CLASSES:
        raise UserError(f"classes={classes!r}: give the number of classes, or one of {', '.join(CLASSES)}")
    entry = architecture.published.get(classes) if isinstance(classes, str) else None
    if weights is not None:
        path = Path(weights)
    elif entry is not None:
        path = files.fetch_entry(entry)
    elif isinstance(classes, str):
        known = sorted(architecture.published)
        raise WrongWeights(
            f"no weights of {name} on {classes} are published ({', '.join(known) or 'none'} are); give a file as "
            "weights=, or the number of classes and train the network"
        )
    else:
        path = None
    count = classes if isinstance(classes, int) else CLASSES[classes]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = architecture.build(count)
    saved = None
    if path is not None:
        state = files.read(path, lambda: network)
        files.load_network(network, files.network_state(state), path)
        saved = files.saved_normalisation(state, path) if mean is None or std is None else None
    found = choose_normalisation(mean=mean, std=std, saved=saved, entry=entry, library=architecture.normalisation)
    return Classifier(network, found.mean, found.std).eval()
