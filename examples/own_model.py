"""Repair a torchvision network with a head of your own against noise and JPEG artefacts: about 40 s on two cores.

    PYTHONPATH=src python examples/own_model.py

It trains the network on scikit-learn's digits first, because an example cannot ship your weights: leave that out.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.models import shufflenet_v2_x0_5

import deeppatch as dp


def noise(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise of standard deviation 0.25 to pixels (N, 3, H, W) in [0, 1]."""
    return pixels + 0.25 * torch.randn(pixels.shape, generator=generator, device=pixels.device)


def jpeg(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Compress pixels (N, 3, H, W) in [0, 1] as JPEG of quality 3 and read them again."""
    images = (255 * pixels).round().to(torch.uint8).cpu()
    return torch.stack([decode_jpeg(encode_jpeg(image, quality=3)) for image in images]).to(pixels.device) / 255


def my_data() -> tuple[DataLoader, DataLoader]:
    """Return loaders of training and test images, grey, 16x16 pixels in [0, 1]."""
    digits = load_digits()
    pixels = torch.from_numpy(digits.images / 16).float().repeat_interleave(2, 1).repeat_interleave(2, 2)
    labels = torch.from_numpy(digits.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1400], order[1400:]
    return tuple(DataLoader(TensorDataset(pixels[part], labels[part]), 64) for part in (train, test))  # type: ignore[return-value]


def my_network(loader: DataLoader, epochs: int = 10) -> nn.Module:
    """Return a ShuffleNet with a head of two layers, trained on clean images."""
    torch.manual_seed(0)
    network = shufflenet_v2_x0_5(num_classes=10)
    network.conv1[0].stride, network.maxpool = (1, 1), nn.Identity()  # for small images
    network.fc = nn.Sequential(nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(epochs):
        for pixels, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(pixels.unsqueeze(1).repeat(1, 3, 1, 1)), labels).backward()
            optimizer.step()
    return network.eval()


def main() -> None:
    """Rank the filters, patch the most suspicious ones, switch for each sample, and compare."""
    train, test = my_data()
    network = my_network(train)

    # from here on: what you would write for your own network and loaders
    model = dp.Classifier(network)  # mean=..., std=... where your network reads normalised pixels
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")  # data follow the model
    data = dp.Data.of(train, test)
    degraded = dp.corruption({"noise": noise, "jpeg": jpeg})
    ranking = dp.rank_filters(model, data, degraded, method="taylor")
    patch = dp.train_patch(model, data, degraded, ranking.choose(ratio=0.25), epochs=8, lr=0.02, batch_size=64)
    switched = dp.fit_switch(model, patch, data, degraded, max_clean_drop=1)
    table = dp.evaluate({"before": model, "patched": patch.apply(model), "switched": switched}, data, degraded)
    print(table.round(2).to_string())


if __name__ == "__main__":
    main()
