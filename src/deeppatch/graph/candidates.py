"""The convolutions of a network that can be ranked and patched, and why others cannot."""

from __future__ import annotations

from collections import Counter

from torch import Tensor, nn

from deeppatch.errors import UserError
from deeppatch.graph.hooks import convolutions, execution_order, is_plain
from deeppatch.progress import info

NAMED = 3  # names in a message, at most


def candidates(network: nn.Module, example: Tensor) -> dict[str, nn.Conv2d]:
    """Return the convolutions that can be ranked and patched: those of `convolutions` that run exactly once.

    The others are counted in one line of the log, with the reason.

    Args:
        network: The network.
        example: Normalised images (N, C, H, W), which are run once.

    Raises:
        UserError: When there is none; the message says why.
    """
    found = convolutions(network)
    runs = Counter(execution_order(network, example)[0])
    reasons = {
        name: _reason(module, runs[name])
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and not (name in found and runs[name] == 1)
    }
    left_out = {reason: [name for name in reasons if reasons[name] == reason] for reason in reasons.values()}
    counts = "; ".join(f"{len(names)} {reason} ({_some(names)})" for reason, names in left_out.items())
    usable = {name: conv for name, conv in found.items() if runs[name] == 1}
    if not usable:
        raise UserError(
            f"no filter can be ranked or patched: {f'of its convolutions, {counts}' if counts else no_convolution()}; "
            "fine-tune this network instead (correct -c finetune)"
        )
    if counts:
        number = sum(map(len, left_out.values()))
        info(f"{number} of {number + len(usable)} convolutions are neither ranked nor patched: {counts}")
    _say_how_little(network, usable)
    return usable


def _say_how_little(network: nn.Module, usable: dict[str, nn.Conv2d]) -> None:
    """Log which share of a network a patch can change where it is under a half, as in a vision transformer."""
    inside = sum(conv.weight.numel() for conv in usable.values())
    share = inside / sum(parameter.numel() for parameter in network.parameters())
    if share < 0.5:
        are = "convolution is" if len(usable) == 1 else "convolutions are"
        info(
            f"{len(usable)} {are} ranked and can be patched ({_some(list(usable))}), with {100 * share:.1f} % of the "
            "network's parameters; other layers stay as they are, and fine-tuning changes all"
        )


def no_convolution() -> str:
    """Return the reason for a network without two-dimensional convolutions."""
    return "this network has no nn.Conv2d"


def _reason(conv: nn.Conv2d, runs: int) -> str:
    if conv.groups > 1:
        return "in groups"
    if not is_plain(conv):
        return "that compute something else than nn.Conv2d does"
    return "that run more than once in a forward pass" if runs else "that are not called in a forward pass"


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
