"""The plain definition of the genetic search for modules, which modules.py times ours against."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import machine  # noqa: F401  puts the package on the path
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from deeppatch.modular.layers import Layer
from deeppatch.modular.masking import masked


class Decoded(Dataset):
    """Images (N, C, H, W) in uint8 that are decoded and normalised one by one."""

    def __init__(self, pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
        self.pixels = pixels.permute(0, 2, 3, 1).numpy()
        self.prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Tensor:
        return self.prepare(Image.fromarray(self.pixels[index]))


def candidate(network: nn.Module, layers: Sequence[Layer], kept: Sequence[Tensor], loader: DataLoader) -> Tensor:
    """Return the logits (N, classes) of a module, masks (1, kernels) by layer: the whole network, silenced."""
    device = next(network.parameters()).device
    with masked(network, layers, kept), torch.no_grad():
        return torch.cat([network(batch.to(device)) for batch in loader])


def pair_seconds(kernels: Tensor, count: int = 500) -> float:
    """Return the seconds that one dissimilarity takes as sets, from modules (M, kernels)."""
    sets = [set(np.flatnonzero(row)) for row in kernels.cpu().numpy()]
    pairs = list(itertools.islice(itertools.combinations(sets, 2), count))
    start = time.perf_counter()
    for a, b in pairs:
        _ = 1 - len(a & b) / len(a | b)
    return (time.perf_counter() - start) / len(pairs)


def rate(task: tuple) -> tuple[float, float]:
    """Rate one composition by its definition: accuracy over its classes' images, and mean dissimilarity."""
    classes, logits, labels, pairs = task
    own = np.isin(labels, classes)
    predictions = np.asarray(classes)[np.stack(logits)[:, own].argmax(0)]
    return float((predictions == labels[own]).mean()), sum(pairs) / len(pairs)


def composition_seconds(logits: Tensor, labels: Tensor, sizes: Sequence[int], count: int) -> dict[int, float]:
    """Return the seconds that one composition of each size takes in a pool, from logits (classes, P, S)."""
    generator, found = np.random.default_rng(3), {}

    def task(size: int) -> tuple:
        chosen = [logits[label, generator.integers(logits.shape[1])].numpy() for label in range(size)]
        return list(range(size)), chosen, labels.numpy(), [0.5] * (size * (size - 1) // 2)

    with ProcessPoolExecutor() as pool:
        list(pool.map(rate, [task(2)] * 8))
        for size in sizes:
            tasks = [task(size) for _ in range(count // len(sizes))]
            start = time.perf_counter()
            list(pool.map(rate, tasks, chunksize=32))
            found[size] = (time.perf_counter() - start) / len(tasks)
    return found
