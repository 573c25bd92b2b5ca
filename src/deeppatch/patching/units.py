"""Modules that replace a convolution: with some new filters, or with corrections of some output channels."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from deeppatch.patching.filter_gradients import can_spare, with_new_filters
from deeppatch.patching.narrow_layers import are_narrow, in_one_step


class ReplacedConv2d(nn.Module):
    """ReplaceCorrect (TOSEM 2023): channels I of the output come from |I| new filters without bias.

    This equals one convolution with new weight rows I, which runs here: the frozen weight with the trained `rows`
    (|I|, C_in, k, k) written into it. The rows are initialised with the original filters; `draw` draws fresh ones.
    """

    kind = "replace"
    channels: Tensor

    def __init__(self, original: nn.Conv2d, channels: Tensor) -> None:
        super().__init__()
        self.original = original
        self.register_buffer("channels", channels, persistent=False)
        self.rows = nn.Parameter(original.weight.detach()[channels].clone())

    def draw(self) -> None:
        """Draw the new filters from torch's generator, with the distribution of a new convolution's weights."""
        nn.init.kaiming_uniform_(self.rows, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H', W'), as the original convolution does."""
        bias = _bias_without(self.original, self.channels)
        if can_spare(self.original, x):
            return with_new_filters(x, self.rows, self.original, self.channels, bias)
        # in place on a copy, because index_copy loses the memory layout
        weight = self.original.weight.detach().clone().index_copy_(0, self.channels, self.rows)
        return self.original._conv_forward(x, weight, bias)

    def new_parameters(self) -> dict[str, Tensor]:
        """Return the tensors that the patch file stores."""
        return {"rows": self.rows}

    def for_inference(self) -> nn.Conv2d:
        """Return the equivalent plain convolution."""
        conv = copy.deepcopy(self.original)
        with torch.no_grad():
            conv.weight[self.channels] = self.rows
            if conv.bias is not None:
                conv.bias[self.channels] = 0
        return conv


class CorrectedConv2d(nn.Module):
    """DeepCorrect's unit (Borkar and Karam, TIP 2019): y[I] = x + g(x) for the original channels x.

    g is conv1x1-BN-ReLU, conv3x3-BN-ReLU, conv3x3-BN-ReLU, conv1x1, all |I| wide, without biases. Its last
    convolution starts at zero, so that training starts from the original network.
    """

    kind = "crtunit"
    channels: Tensor
    unit: nn.Sequential

    def __init__(self, original: nn.Conv2d, channels: Tensor) -> None:
        super().__init__()
        self.original = original
        self.register_buffer("channels", channels, persistent=False)
        width = len(channels)
        last = nn.Conv2d(width, width, 1, bias=False)
        nn.init.zeros_(last.weight)
        self.unit = nn.Sequential(*_conv_bn_relu(width, 1), *_conv_bn_relu(width, 3), *_conv_bn_relu(width, 3), last)
        self.unit.to(original.weight.device, original.weight.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, H', W'), as the original convolution does."""
        y = self.original(x)
        if self.unit.training and y.device.type == "cpu":
            return self.correct_all(y)
        return _with_channels(y, self.channels, self.correct(y).to(y.dtype))

    def correct(self, y: Tensor) -> Tensor:
        """Map the original output (N, C_out, H', W') to its corrected channels (N, |I|, H', W')."""
        picked = _channels_last_view(y).index_select(3, self.channels).permute(0, 3, 1, 2)
        return picked + self.unit(picked)

    def correct_all(self, y: Tensor) -> Tensor:
        """Return the original output (N, C_out, H', W') with its corrected channels, for training on a CPU.

        Equals `correct` up to rounding. The first and the last convolution have 1x1 filters, so they can pick the
        channels and add the corrections to them: with weights of zero for all other channels, nothing is copied.
        """
        *steps, last = self.unit.children()
        found = y
        for conv, norm, relu in zip(steps[::3], steps[1::3], steps[2::3], strict=True):
            assert isinstance(norm, nn.BatchNorm2d)
            filters: Tensor = conv.weight  # type: ignore[assignment]
            if found is y:
                filters = _among_all(filters.transpose(0, 1), self.channels, y.shape[1]).transpose(0, 1)
            if are_narrow(found, filters, norm):
                found = in_one_step(found, filters, norm)
            else:
                found = relu(norm(F.conv2d(found, filters, padding=filters.shape[-1] // 2)))
        return F.conv2d(found, _among_all(last.weight, self.channels, y.shape[1])).to(y.dtype).add_(y)  # type: ignore[arg-type]

    def new_parameters(self) -> dict[str, Tensor]:
        """Return the tensors that the patch file stores."""
        return {f"unit.{key}": value for key, value in self.unit.state_dict().items()}

    def for_inference(self) -> CorrectedConv2d:
        """Return the module itself: there is nothing to merge."""
        return self


Unit = ReplacedConv2d | CorrectedConv2d
UNITS: dict[str, Callable[[nn.Conv2d, Tensor], Unit]] = {"replace": ReplacedConv2d, "crtunit": CorrectedConv2d}


@fx.wrap
def _with_channels(y: Tensor, channels: Tensor, values: Tensor) -> Tensor:
    """Return maps (N, C, H, W) with other values (N, |I|, H, W) of the channels I; one step of a traced network."""
    if torch.compiler.is_exporting():  # in a program, later layers cannot ask for the layout of so many samples
        return y.index_copy(1, channels, values)
    return _channels_last_view(y).index_copy(3, channels, _channels_last_view(values)).permute(0, 3, 1, 2)


def _channels_last_view(maps: Tensor) -> Tensor:
    """Return a view (N, H, W, C), in which indexing keeps the memory layout of channels_last."""
    return maps.permute(0, 2, 3, 1)


def _among_all(rows: Tensor, channels: Tensor, count: int) -> Tensor:
    """Return `count` rows: these at the channels I, and zeros elsewhere."""
    return rows.new_zeros(count, *rows.shape[1:]).index_copy(0, channels, rows)


def _bias_without(conv: nn.Conv2d, channels: Tensor) -> Tensor | None:
    return None if conv.bias is None else conv.bias.detach().index_fill(0, channels, 0)


def _conv_bn_relu(width: int, size: int) -> list[nn.Module]:
    conv = nn.Conv2d(width, width, size, padding=size // 2, bias=False)
    return [conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
