"""--features ssl: train the encoder that images are compared by, or take the one that an earlier run left."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deeppatch.artifacts import state_digest, tensors_from_bytes, tensors_to_bytes, write_bytes
from deeppatch.cli.context import Context
from deeppatch.cli.naming import model_folder
from deeppatch.cli.pool import Pool
from deeppatch.data.views import to_float
from deeppatch.errors import StaleArtifact
from deeppatch.hybrid.encoder import Encoder, Pairs, contrast, neighbours_accuracy
from deeppatch.progress import info
from deeppatch.training import fit, last, sgd
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.classifier import Classifier

# of SimCLR on small images, for 128 of them in a batch
RATE, MOMENTUM, DECAY = 0.06, 0.9, 5e-4


@dataclass(frozen=True)
class Encoding:
    """A trained encoder, and how well the nearest training images tell the class of val images, in percent."""

    encode: Callable[[Tensor], Tensor]
    facts: dict[str, object]


def encoding_of(context: Context, pool: Pool) -> Encoding:
    """Return the encoder for these options, trained on the images of train and pool; no label and no test image.

    It is kept by content under encoder/, beside the folders of the stages.
    """
    options, train = context.options, context.splits.train
    images = torch.cat([train.pixels, pool.pixels])  # type: ignore[list-item]
    chosen = f"{options.encoder} {options.encoder_epochs} {options.seed} {options.batch_size} {options.amp}"
    made_of = f"{chosen} {context.device.type} {context.source.mirror} {state_digest({'images': images})}"
    path = model_folder(options) / "encoder" / f"{hashlib.sha256(made_of.encode()).hexdigest()[:32]}.safetensors"
    mean, std = (tensor.tolist() for tensor in torch.std_mean(to_float(train.pixels[:]), (0, 2, 3))[::-1])
    torch.manual_seed(options.seed)
    encoder = Encoder(Classifier(ARCHITECTURES[options.encoder](2), mean, std).to(context.device), context.example)
    encoder.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    facts = kept(path, encoder)
    if facts is None:
        facts = learn(context, encoder, images)
        state = encoder.state_dict()
        write_bytes(path, tensors_to_bytes(state, {"facts": facts, "digest": state_digest(state)}))
    right = facts["knn_accuracy_on_val_percent"]
    info(f"encoder: most neighbours of {right} % of val images are of their class")
    return Encoding(lambda pixels: encoder.features(pixels, batch_size=options.batch_size, amp=options.amp), facts)


def kept(path: Path, encoder: Encoder) -> dict[str, object] | None:
    """Load what an earlier run left into an encoder, and return what is known of it; None where that is not whole."""
    if not path.exists():
        return None
    with contextlib.suppress(StaleArtifact):
        state, meta = tensors_from_bytes(path.read_bytes(), path)
        if meta.get("digest") == state_digest(state):
            encoder.load_state_dict(state)
            info(f"inherited {path}")
            return dict(meta["facts"])
    info(f"{path} is damaged; training it again")
    return None


def learn(context: Context, encoder: Encoder, images: Tensor) -> dict[str, object]:
    """Train an encoder in place, and return what is known of it."""
    options, splits = context.options, context.splits

    def judged(_encoder: torch.nn.Module) -> float:
        features = [
            encoder.features(part.pixels[:], batch_size=options.batch_size) for part in (splits.train, splits.val)
        ]
        return neighbours_accuracy(features[0], splits.train.labels, features[1], splits.val.labels)

    epochs = [
        Pairs(images, options.batch_size, options.seed, epoch, mirror=context.source.mirror)
        for epoch in range(options.encoder_epochs)
    ]
    optimizer, schedule = sgd(
        encoder.parameters(),
        lr=RATE * options.batch_size / 128,
        momentum=MOMENTUM,
        weight_decay=DECAY,
        steps=sum(map(len, epochs)),
    )
    checkpoint = context.checkpoint()
    history = fit(
        encoder,
        epochs,
        judged,
        loss=contrast,
        optimizer=optimizer,
        schedule=schedule,
        checkpoint=checkpoint,
        choose=last,
        amp=options.amp,
        label="encoder",
    )
    return {
        "encoder": options.encoder,
        "epochs": options.encoder_epochs,
        "images": len(images),
        "knn_accuracy_on_val_percent": round(100 * history.accuracy[-1], 2),
    }
