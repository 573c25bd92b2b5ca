"""What the methods that choose images read: a model, a pool and training images, with what is computed of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch.data.images import Images
from deeppatch.features import Embeddings, embed
from deeppatch.hybrid.choice_settings import ChoiceSettings
from deeppatch.hybrid.consistency import Consistency, consistency, threshold
from deeppatch.metrics.calibration import fit_temperature
from deeppatch.runtime import generator


@dataclass
class SelectionInputs:
    """A model and a pool of unlabelled images, with features and predictions that are computed when first used.

    Args:
        model: The classifier.
        pool: The pixels of the pool, uint8 (N, 3, H, W).
        train: The pixels of the training images.
        seed: The seed of all random choices.
        views: The number of AugMix views of each image.
        encode: Computes features (N, D) by another network; labels are then propagated to whole clusters.
        batch_size: The number of images in a batch.
        amp: Whether forward passes run in bfloat16.
        train_labels: The classes of the training images, int64 (R,); by default what the model predicts for them.
        val: Labelled images of the training data that the model was not trained on, to calibrate its predictions;
            without them they are taken as they are.
        settings: The settings of hybrid and of coreset that the paper's studies vary.
    """

    model: nn.Module
    pool: Tensor
    train: Tensor
    seed: int
    views: int = 8
    encode: Callable[[Tensor], Tensor] | None = None
    batch_size: int = 256
    amp: bool = False
    train_labels: Tensor | None = None
    val: Images | None = None
    settings: ChoiceSettings = ChoiceSettings()

    @cached_property
    def embeddings(self) -> Embeddings:
        """Logits and penultimate features of the pool."""
        return embed(self.model, self.pool, batch_size=self.batch_size, amp=self.amp, label="pool")

    @cached_property
    def train_embeddings(self) -> Embeddings:
        """Logits and penultimate features of the training images."""
        return embed(self.model, self.train, batch_size=self.batch_size, amp=self.amp, label="training images")

    @cached_property
    def consistency(self) -> Consistency:
        """The predictions for views of the pool."""
        return consistency(
            self.model, self.pool, self.views, self.generator("views"), batch_size=self.batch_size, amp=self.amp
        )

    @cached_property
    def features(self) -> Tensor:
        """The features by which images of the pool are compared, (N, D)."""
        return self.embeddings.features if self.encode is None else self.encode(self.pool)

    @cached_property
    def train_features(self) -> Tensor:
        """The same features of the training images, (R, D)."""
        return self.train_embeddings.features if self.encode is None else self.encode(self.train)

    @cached_property
    def class_means(self) -> Tensor:
        """The mean of `train_features`, scaled to length 1, for each class that the training images have, (K, D)."""
        labels = self.train_embeddings.logits.argmax(1) if self.train_labels is None else self.train_labels
        members = F.one_hot(labels.to(self.train_features.device)).T.float()
        members = members[members.any(1)]
        return members @ F.normalize(self.train_features.float(), dim=1) / members.sum(1, keepdim=True)

    @cached_property
    def calibrated(self) -> Tensor:
        """The predictions for the pool, (N, C), at the temperature that calibrates them on `val`."""
        if self.val is None or not len(self.val):
            return self.embeddings.probabilities
        pixels, labels = self.val.pixels, self.val.labels.cpu().numpy()
        found = embed(self.model, pixels, batch_size=self.batch_size, amp=self.amp, label="val")
        return (self.embeddings.logits / fit_temperature(found.logits.cpu().numpy(), labels)).softmax(1)

    def generator(self, purpose: str) -> torch.Generator:
        """Return the random generator of one purpose."""
        return generator(self.seed, "annotate", purpose)

    @property
    def tau(self) -> float:
        """The threshold of entropy: as given, the mean of the pool, or by distance to the training images."""
        tau, entropy = self.settings.tau, self.consistency.entropy
        if not isinstance(tau, str):
            return float(tau)
        if tau == "mean":
            return entropy.mean().item()
        return threshold(entropy, self.embeddings.logits, self.train_embeddings.logits, self.generator("threshold"))
