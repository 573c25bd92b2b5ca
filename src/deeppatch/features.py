"""What a classifier makes of clean images in one pass: logits, and the features that its last linear layer reads."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.data.views import to_float
from deeppatch.errors import UserError
from deeppatch.graph.hooks import hooked
from deeppatch.progress import track


@dataclass(frozen=True)
class Embeddings:
    """Logits (N, C) and penultimate features (N, D) of N images, float32."""

    logits: Tensor
    features: Tensor

    @property
    def probabilities(self) -> Tensor:
        """Softmax (N, C) of the logits."""
        return self.logits.softmax(1)


@torch.no_grad()
def embed(
    model: nn.Module, pixels: Tensor, *, batch_size: int = 256, amp: bool = False, label: str = "features"
) -> Embeddings:
    """Run a model in eval mode over uint8 pixels (N, 3, H, W)."""
    device = next(model.parameters()).device
    layer = last_linear(model, to_float(pixels[:1]))
    logits, features = [], []
    batches = pixels.split(batch_size)
    with hooked(layer, lambda _module, inputs, _output: features.append(inputs[0].float())):
        for batch in track(batches, len(batches), label):
            with runtime.autocast(device, amp):
                logits.append(model(to_float(batch)).float())
    return Embeddings(torch.cat(logits), torch.cat(features))


@torch.no_grad()
def last_linear(model: nn.Module, example: Tensor) -> nn.Linear:
    """Return the linear layer that makes the logits of a classifier; UserError where there is none. Sets eval mode."""
    model.eval()
    made: list[tuple[nn.Linear, Tensor]] = []
    with ExitStack() as stack:
        for layer in (module for module in model.modules() if isinstance(module, nn.Linear)):
            stack.enter_context(hooked(layer, lambda module, _inputs, output: made.append((module, output))))
        logits = model(example)
    if not made or not torch.equal(made[-1][1], logits):
        raise UserError("this network does not end in a linear layer, whose features annotate reads; choose another -m")
    return made[-1][0]
