"""How long networks take for an image, on the device that they are on."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.graph.hooks import eval_mode
from deeppatch.progress import track
from deeppatch.zoo.classifier import device_of

LARGE_BATCH, RUNS_ALONE, RUNS_OF_BATCH, WARM_UP = 256, 50, 5, 2


@torch.inference_mode()
def latencies(networks: Mapping[str, nn.Module], pixels: Tensor, *, amp: bool = False) -> pd.DataFrame:
    """Return how many milliseconds networks take for an image, alone and in a batch of all images.

    These are medians over runs after some to warm up: over single images one after the other, and over repetitions of
    the batch. They depend on the machine and on what else it does. What a routed network takes depends on the images,
    because the paths differ in length, and both run where a batch has images for both.

    Args:
        networks: Classifiers of pixels (N, 3, H, W) in [0, 1].
        pixels: The images (N, 3, H, W), such as those of a mixed stream.
        amp: Whether networks run in bfloat16.

    Returns:
        A row for each network and batch size: `network`, `batch`, `milliseconds` an image, the number of `runs`,
        `device`, `hardware` and `threads`.

    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    >>> latencies({"a": network}, torch.rand(6, 3, 2, 2))[["network", "batch"]].to_numpy().tolist()
    [['a', 1], ['a', 6]]
    """
    rows: list[dict[str, Any]] = []
    device = pixels.device
    with ExitStack() as stack:
        for network in networks.values():
            stack.enter_context(eval_mode(network))
        for name, network in track(networks.items(), len(networks), "measuring latency"):
            device = device_of(network)
            images = pixels.to(device)
            alone, whole = itertools.cycle(images.split(1)), itertools.repeat(images)
            with runtime.autocast(device, amp):
                for batches, size, runs in ((alone, 1, RUNS_ALONE), (whole, len(images), RUNS_OF_BATCH)):
                    seconds = runtime.median_seconds(
                        lambda network=network, batches=batches: network(next(batches)),  # type: ignore[misc]
                        device,
                        repeats=runs,
                        warm_up=WARM_UP,
                    )
                    rows.append({"network": name, "batch": size, "milliseconds": 1000 * seconds / size, "runs": runs})
    machine = runtime.describe(device)
    return pd.DataFrame(rows).assign(**{name: machine[name] for name in ("device", "hardware", "threads")})
