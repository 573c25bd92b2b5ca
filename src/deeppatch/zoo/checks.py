"""Check tensors of a checkpoint before they are loaded: shapes, types and values, and which networks they would fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from deeppatch.errors import WrongWeights
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.key_names import match
from deeppatch.zoo.stored_tensors import shown

SOUND = "give the weights of a sound training"


def check_shapes(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], origin: Path | str) -> None:
    """Raise WrongWeights when shapes differ from a network's; where only the head's do, it is for other classes.

    Args:
        tensors: Tensors by the network's names.
        own: The network's state dict.
        origin: The file, for messages.
    """
    differing = [key for key, value in tensors.items() if own[key].shape != value.shape]
    if not differing:
        return
    head = list(own)[-1]
    layer = head.rsplit(".", 1)[0]
    others = {key.rsplit(".", 1)[0] for key in differing} == {layer}
    widths = all(tensors[key].shape[1:] == own[key].shape[1:] for key in differing)
    if head in differing and others and widths and tensors[head].ndim:
        raise WrongWeights(
            f"{origin} is for {len(tensors[head])} classes, the data set has {len(own[head])}; "
            "choose the data set that it was made for"
        )
    key = differing[0]
    raise WrongWeights(
        f"{origin}: {key} has shape {tuple(tensors[key].shape)}, the network wants {tuple(own[key].shape)}; "
        f"{which_network(tensors)}"
    )


def check_values(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], names: Mapping[str, str], origin: Path | str
) -> None:
    """Raise WrongWeights when weights are no floating-point numbers or not finite, or a variance is negative.

    Args:
        tensors: Tensors by the network's names.
        own: The network's state dict.
        names: The names in the file by those of the network.
        origin: The file, for messages.
    """
    for key, value in tensors.items():
        name = shown(names[key])
        if not own[key].is_floating_point():
            continue
        if not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise WrongWeights(f"{origin}: {name} holds {kind}, no floating-point numbers; save the weights as float32")
        wrong = value.numel() - int(value.float().isfinite().sum())
        if wrong:
            raise WrongWeights(f"{origin}: {name} holds {wrong} NaN or infinite numbers; {SOUND}")
        if key.endswith("running_var") and bool((value.float() < 0).any()):
            raise WrongWeights(f"{origin}: {name} holds a negative variance; {SOUND}")


def which_network(state: Mapping[str, Tensor]) -> str:
    """Say which networks of the zoo a state dict fits, as what to do next."""
    names = fitting_networks(state)
    return f"it fits {' or '.join(names)}: choose that with -m" if names else "choose the model that it was made for"


def fitting_networks(state: Mapping[str, Tensor]) -> list[str]:
    """Return the networks of the zoo whose names and shapes a state dict has, for any number of classes.

    >>> import torch
    >>> from deeppatch.zoo.architectures import ARCHITECTURES
    >>> fitting_networks(ARCHITECTURES["resnet20a"](7).state_dict())
    ['resnet20a']
    """
    return [name for name in ARCHITECTURES if _fits(state, name)]


def _fits(state: Mapping[str, Tensor], name: str) -> bool:
    own = _shapes(name, 10)
    found = match(state, own)[0]
    head = list(own)[-1]
    if not found.exact or not state[found.names[head]].ndim:
        return False
    own = _shapes(name, len(state[found.names[head]]))
    return all(own[key].shape == state[old].shape for key, old in found.names.items())


def _shapes(name: str, classes: int) -> dict[str, Tensor]:
    with torch.device("meta"):
        return ARCHITECTURES[name](classes).state_dict()
