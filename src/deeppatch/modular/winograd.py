"""Winograd convolutions (3 by 3 kernels), for the many small networks that a search runs on a CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from deeppatch.graph import hooks

MIN_CHANNELS = 128  # input channels from which the saved multiplications outweigh the transforms


class Transforms(NamedTuple):
    """Matrices that act on flat tiles: of inputs ((m + 2)^2, square), filters (square, 9), products (m^2, square)."""

    inputs: Tensor
    filters: Tensor
    products: Tensor


def _transforms(inputs: list[list[float]], filters: list[list[float]], products: list[list[float]]) -> Transforms:
    return Transforms(*(torch.kron(one, one) for one in map(torch.tensor, (inputs, filters, products))))


# F(m x m, 3 x 3) of Lavin and Gray, CVPR 2016, section 4: m x m outputs of each tile of m + 2 by m + 2
TILES = {
    2: _transforms(
        [[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
        [[1.0, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]],
        [[1.0, 1, 1, 0], [0, 1, -1, -1]],
    ),
    4: _transforms(
        [[4.0, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
         [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]],
        [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
         [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]],
        [[1.0, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    ),
}  # fmt: skip


class WinogradConv2d(nn.Conv2d):
    """A 3 by 3 convolution of stride and padding 1 that uses Winograd's algorithm if it has enough input channels."""

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> WinogradConv2d:
        """Return a Winograd convolution that shares the parameters of `conv`."""
        convolution = cls(conv.in_channels, conv.out_channels, 3, padding=1, bias=False, device="meta")
        convolution.weight, convolution.bias = conv.weight, conv.bias
        return convolution

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H, W)."""
        if self.in_channels < MIN_CHANNELS:
            return super().forward(x)
        return winograd_conv2d(x, self.weight, self.bias)


def winograd_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, size: int | None = None) -> Tensor:
    """Convolve (N, in, H, W) with (out, in, 3, 3) in tiles of `size` outputs (default: with fewest multiplications)."""
    (samples, channels, height, width), out = x.shape, len(weight)
    size = size or min(TILES, key=lambda m: -(-height // m) * -(-width // m) * (m + 2) ** 2)
    tiles, side = TILES[size], size + 2
    rows, columns = -(-height // size), -(-width // size)
    filters = tiles.filters.to(x) @ weight.permute(0, 2, 3, 1).reshape(out, 9, channels)
    margins = (0, 0, 1, 1 + columns * size - width, 1, 1 + rows * size - height)
    patches = F.pad(x.permute(0, 2, 3, 1), margins).unfold(1, side, size).unfold(2, side, size)
    flat = tiles.inputs.to(x) @ patches.permute(4, 5, 0, 1, 2, 3).reshape(side * side, -1)
    products = torch.bmm(flat.view(side * side, -1, channels), filters.permute(1, 2, 0))
    outputs = (tiles.products.to(x) @ products.flatten(1)).view(size, size, samples, rows, columns, out)
    outputs = outputs.permute(2, 3, 0, 4, 1, 5).reshape(samples, rows * size, columns * size, out)
    outputs = outputs[:, :height, :width]
    return (outputs if bias is None else outputs + bias).permute(0, 3, 1, 2)


def optimize_for_cpu(network: nn.Module) -> nn.Module:
    """Return a copy that is faster on a CPU, or the network itself if it is on another device.

    Its 3 by 3 convolutions use Winograd's algorithm. In a traced network, a ReLU before a max-pooling is moved behind
    it, which changes no logit.
    """
    if any(parameter.device.type != "cpu" for parameter in network.parameters()):
        return network
    faster = copy.deepcopy(network)
    for name, conv in hooks.convolutions(faster).items():
        shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        if type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and shape == ((3, 3), (1, 1), (1, 1), (1, 1)):
            hooks.swap(faster, name, WinogradConv2d.from_conv(conv))
    if isinstance(faster, fx.GraphModule):
        _pool_first(faster)
    return faster


def _pool_first(network: fx.GraphModule) -> None:
    for pool in network.graph.nodes:
        relu = pool.args[0] if _calls(network, pool, F.max_pool2d, nn.MaxPool2d) else None
        if relu is not None and _calls(network, relu, F.relu, nn.ReLU) and len(relu.users) == 1:
            pool.replace_input_with(relu, relu.args[0])
            pool.replace_all_uses_with(relu)
            relu.replace_input_with(relu.args[0], pool)
            pool.append(relu)
    network.recompile()


def _calls(network: fx.GraphModule, node: fx.Node, function: Callable[..., Tensor], kind: type[nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), kind)
    return node.op == "call_function" and node.target is function
