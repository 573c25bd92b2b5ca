"""Time the decomposed head against the whole last layer, at ResNet-20's size and at ResNet-50's.

python benchmarks/decomposed_head.py [--device cpu|cuda] [--output benchmarks.csv]
"""

from __future__ import annotations

import argparse

import machine
import pandas as pd
import torch
from torch import nn

from deeppatch.decomposition.head import DecomposedHead, microseconds

SIZES = {"ResNet-20, CIFAR-10": (64, 10, 5), "ResNet-50, ImageNet": (2048, 1000, 50)}
BATCHES = (1, 64, 256)


def parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark's options."""
    return machine.parser(__doc__ or "")


def main() -> None:
    """Print a table, and write it as CSV."""
    options = parser().parse_args()
    device = machine.prepared(options.device)
    rows = []
    for name, (features, classes, k) in SIZES.items():
        whole = nn.Linear(features, classes).to(device)
        indices = torch.rand(classes, features).argsort(1)[:, :k].to(device)
        head = DecomposedHead.from_linear(whole, indices)
        for batch in BATCHES:
            inputs = torch.rand(batch, features, device=device)
            times = [microseconds(module, inputs) for module in (whole, head)]
            rows.append({
                "size": name, "batch": batch, "whole_multiply_adds": features * classes,
                "decomposed_multiply_adds": head.multiply_adds, "whole_us": times[0], "decomposed_us": times[1],
                "times_as_fast": times[0] / times[1],
            })  # fmt: skip
    frame = pd.DataFrame(rows)
    print(machine.heading(device))
    print(frame.to_string(index=False, float_format="%.2f"))
    machine.write(frame, options, device, images="random features")


if __name__ == "__main__":
    main()
