"""Which parameters of a network are trained: all, the last linear layer, or that and the normalisations."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from deeppatch.errors import UserError
from deeppatch.features import last_linear
from deeppatch.hybrid.names import SCOPES

NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm, _InstanceNorm)


def limit_to_scope(model: nn.Module, scope: str, example: Tensor) -> list[nn.Parameter]:
    """Let only the parameters of one of SCOPES require gradients, and return them.

    The model is changed: `all` is every parameter, `head` the last linear layer, `norms` that and the scales and shifts
    of all normalisations. `example` is one image as floats. UserError where the scope is unknown, or `head` or `norms`
    is asked of a network that does not end in a linear layer.

    >>> import torch
    >>> network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    >>> [len(limit_to_scope(network, scope, torch.zeros(1, 3, 2, 2))) for scope in ("all", "head", "norms")]
    [6, 2, 4]
    """
    if scope not in SCOPES:
        raise UserError(f"scope={scope!r} is unknown; choose from {', '.join(SCOPES)}")
    chosen = {id(each) for each in model.parameters()}
    if scope != "all":
        modules: list[nn.Module] = [last_linear(model, example)[1]]
        if scope == "norms":
            modules += [module for module in model.modules() if isinstance(module, NORMS)]
        chosen = {id(each) for module in modules for each in module.parameters(recurse=False)}
    for each in model.parameters():
        each.requires_grad_(id(each) in chosen)
    return [each for each in model.parameters() if each.requires_grad]


def enter_training(model: nn.Module, scope: str) -> None:
    """Set the training mode; with the scope `head` features are those of eval mode, with running statistics."""
    model.train(scope != "head")
