"""Running statistics of batch normalisations, estimated again on other images."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deeppatch import runtime
from deeppatch.errors import UserError

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def batch_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch normalisations that have running statistics, by name, in order of definition."""
    return {n: m for n, m in network.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}


@torch.no_grad()
def reestimate(model: nn.Module, batches: Iterable[tuple[Tensor, ...]], *, amp: bool = False) -> nn.Module:
    """Return a copy of a model whose running statistics are those of other images; nothing is trained.

    The statistics are reset, and become the mean over batches of the means and of the unbiased variances of each
    batch, so that batches should have the same size. Only the normalisations are in training mode meanwhile, so that
    each is fed with maps that those before it have normalised by the batch (Jordan et al., REPAIR, ICLR 2023, arXiv
    2211.08403, take the same pass).

    Args:
        model: The model; it is not changed.
        batches: Tensors of which the first are the model's inputs, such as pixels (N, 3, H, W) in [0, 1].
        amp: Whether forward passes run in bfloat16.

    Returns:
        The copy, in eval mode.

    Raises:
        UserError: When the model has no batch normalisation with running statistics, or a batch has too few values.

    >>> model = nn.Sequential(nn.BatchNorm2d(3))
    >>> again = reestimate(model, [(torch.full((2, 3, 4, 4), 5.0),), (torch.full((2, 3, 4, 4), 7.0),)])
    >>> again[0].running_mean, model[0].running_mean
    (tensor([6., 6., 6.]), tensor([0., 0., 0.]))
    """
    estimated = copy.deepcopy(model).eval()
    norms = batch_norms(estimated)
    if not norms:
        raise UserError("this network has no batch normalisation with running statistics to estimate again")
    momenta = {name: norm.momentum for name, norm in norms.items()}
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.training = True
    for inputs, *_rest in batches:
        with runtime.autocast(inputs.device, amp), runtime.explained_single_images():
            estimated(inputs)
    for name, norm in norms.items():
        norm.momentum = momenta[name]
    return estimated.eval()
