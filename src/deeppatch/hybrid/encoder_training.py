"""Train an encoder on unlabelled images, or load it from the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deeppatch.artifacts import Checkpoint
from deeppatch.cache import ContentCache, Entry
from deeppatch.data.dataset import Data
from deeppatch.data.views import to_float
from deeppatch.errors import check_counts
from deeppatch.features import pixels_digest
from deeppatch.hybrid.encoder import Encoder, PositivePairs, contrastive_loss, neighbours_accuracy
from deeppatch.progress import info
from deeppatch.training import fit, last_epoch, seeded, sgd
from deeppatch.zoo.classifier import Classifier

# of SimCLR for small images and batches of 128
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.06, 0.9, 5e-4


@dataclass(frozen=True)
class EncoderSettings:
    """The settings of an encoder and its training; `encoder` is the name of the network that `build` returns."""

    encoder: str = "resnet18"
    epochs: int = 100
    batch_size: int = 256
    seed: int = 2021
    amp: bool = False

    def __post_init__(self) -> None:
        """Raise UserError when a number is out of range."""
        check_counts(epochs=self.epochs, batch_size=self.batch_size)


@dataclass(frozen=True)
class TrainedEncoder:
    """A trained encoder, which is called with uint8 pixels (N, 3, H, W).

    `facts` has its name, the number of epochs and of training images, and the accuracy on val, in percent, of a
    nearest-neighbour classifier on its features.
    """

    encoder: Encoder
    settings: EncoderSettings
    facts: dict[str, Any]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return features, float32 (N, D)."""
        return self.encoder.features(pixels, batch_size=self.settings.batch_size, amp=self.settings.amp)


def train_encoder(
    build: Callable[[], nn.Module],
    data: Data,
    pool_pixels: Tensor,
    settings: EncoderSettings,
    *,
    cache: ContentCache | None = None,
    checkpoint: Checkpoint | None = None,
) -> TrainedEncoder:
    """Train an encoder on the images of train and pool; no label and no test image is used.

    `build` returns an untrained network that ends in a linear layer; torch is seeded before it is called. The encoder
    is on the device of the data, where pool_pixels, uint8 (N, 3, H, W), must be too. With a cache it is trained once.
    """
    train = data.train.pixels[:]
    images = torch.cat([train, pool_pixels])
    mean, std = (tensor.tolist() for tensor in torch.std_mean(to_float(train), (0, 2, 3))[::-1])
    with seeded(settings.seed):
        encoder = Encoder(Classifier(build(), mean, std).to(images.device), data.example)
        encoder.to(images.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        key = {**asdict(settings), "device": images.device.type, "mirror": data.mirror, "images": pixels_digest(images)}
        cached = cache.read(key) if cache else None
        if cache and cached:
            info(f"inherited {cache.path(key)}")
            encoder.load_state_dict(cached.tensors)
            return TrainedEncoder(encoder, settings, cached.notes)
        facts = fit_encoder(encoder, images, data, settings, checkpoint)
    if cache:
        cache.write(key, Entry(encoder.state_dict(), facts))
    return TrainedEncoder(encoder, settings, facts)


def fit_encoder(
    encoder: Encoder, images: Tensor, data: Data, settings: EncoderSettings, checkpoint: Checkpoint | None = None
) -> dict[str, Any]:
    """Train an encoder in place on images (N, 3, H, W), and return its `facts`."""

    def validate(_encoder: nn.Module) -> float:
        features = [encoder.features(part.pixels[:], batch_size=settings.batch_size) for part in (data.train, data.val)]
        return neighbours_accuracy(features[0], data.train.labels, features[1], data.val.labels)

    epochs = [
        PositivePairs(images, settings.batch_size, settings.seed, epoch, mirror=data.mirror)
        for epoch in range(settings.epochs)
    ]
    optimizer, schedule = sgd(
        encoder.parameters(),
        lr=LEARNING_RATE * settings.batch_size / 128,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        steps=sum(map(len, epochs)),
    )
    history = fit(
        encoder,
        epochs,
        validate,
        loss=contrastive_loss,
        optimizer=optimizer,
        schedule=schedule,
        checkpoint=checkpoint,
        choose=last_epoch,
        amp=settings.amp,
        label="encoder",
    )
    return {
        "encoder": settings.encoder,
        "epochs": settings.epochs,
        "images": len(images),
        "knn_accuracy_on_val_percent": round(100 * history.accuracy[-1], 2),
    }
