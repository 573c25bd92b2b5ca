"""Decide for each sample which network answers it, from what the first maps, or the answers of all networks, show."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from deeppatch.artifacts import tensors_from_bytes, tensors_to_bytes
from deeppatch.errors import StaleArtifact
from deeppatch.patching.density import Density
from deeppatch.patching.names import READ_ANSWERS


@dataclass(frozen=True)
class Maps:
    """The patched channels before their ReLU, original and replaced (N, K, H, W), and the pixels (N, 3, H, W)."""

    pixels: Tensor
    original: Tensor
    replaced: Tensor


def flip_fraction(maps: Maps) -> Tensor:
    """Return d (N, 1): the fraction of entries whose ReLU is active in exactly one version (TOSEM 2023)."""
    return ((maps.original > 0) != (maps.replaced > 0)).float().mean((1, 2, 3)).unsqueeze(1)


def pooled_statistics(maps: Maps) -> Tensor:
    """Return statistics of maps and pixels, (N, 6 K + 3).

    Of each channel, original and replaced: the mean after ReLU, the standard deviation, and the mean magnitude. Of the
    pixels: the mean absolute Laplacian (sharpness), its ratio to the standard deviation, and the standard deviation.
    """
    columns = []
    for version in (maps.original.float(), maps.replaced.float()):
        size = torch.linalg.vector_norm(version, 1, (2, 3)) / version.shape[2:].numel()
        columns += [
            (version.mean((2, 3)) + size) / 2,
            _standard_deviation(version, (2, 3)),
            size,
        ]  # relu is (x + |x|) / 2
    pixels = maps.pixels
    laplacian = pixels[:, :, :-2, 1:-1] + pixels[:, :, 2:, 1:-1]
    laplacian += pixels[:, :, 1:-1, :-2]
    laplacian += pixels[:, :, 1:-1, 2:]
    sharpness = laplacian.sub_(pixels[:, :, 1:-1, 1:-1], alpha=4).abs_().mean((1, 2, 3))
    deviation = _standard_deviation(pixels, (1, 2, 3))
    return torch.cat([*columns, torch.stack([sharpness, sharpness / (deviation + 1e-6), deviation], 1)], 1)


def _standard_deviation(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the standard deviation as `Tensor.std` does, but many times as fast on a CPU; 0 for a single value."""
    count = math.prod(values.shape[axis] for axis in axes)
    centred = values - values.mean(axes, keepdim=True)
    return torch.linalg.vector_norm(centred, 2, axes) / max(1, count - 1) ** 0.5


@dataclass(frozen=True)
class Answers:
    """What a network makes of samples: logits (N, classes), and what its last linear layer reads, (N, D)."""

    logits: Tensor
    features: Tensor


def answer_statistics(original: Answers, other: Answers) -> Tensor:
    """Return statistics of the answers of two networks, float64 (N, 13 + D + D').

    With p the softmax of each, y its class: log p of y and of the other network's class, the entropy, the difference
    between the two largest logits, and the logarithm of the sum of exponentials of the logits; whether both classes
    are the same, and the two Kullback-Leibler divergences. Then what the last linear layers read.
    """
    one, two = (answers.logits.double() for answers in (original, other))
    log_one, log_two = one.log_softmax(1), two.log_softmax(1)
    p_one, p_two = log_one.exp(), log_two.exp()
    class_one, class_two = one.argmax(1, keepdim=True), two.argmax(1, keepdim=True)
    columns = [log.gather(1, chosen) for chosen in (class_one, class_two) for log in (log_one, log_two)]
    columns += [-(p * log).sum(1, keepdim=True) for p, log in ((p_one, log_one), (p_two, log_two))]
    columns += [logits.topk(min(2, logits.shape[1])).values.diff().sum(1, keepdim=True) for logits in (one, two)]
    columns += [logits.logsumexp(1, keepdim=True) for logits in (one, two)]
    columns += [(class_one == class_two).double(), (p_one * (log_one - log_two)).sum(1, keepdim=True)]
    columns += [(p_two * (log_two - log_one)).sum(1, keepdim=True)]
    return torch.cat([*columns, original.features.double(), other.features.double()], 1)


FEATURES: dict[str, Callable[[Maps], Tensor]] = {
    "probe": pooled_statistics, "flips": flip_fraction,
    "benefit": pooled_statistics, "benefit-both": pooled_statistics, "average": pooled_statistics,
}  # fmt: skip


def features_of(kind: str, maps: Maps, answers: Sequence[Answers] = ()) -> Tensor:
    """Return the features (N, F), float64, by which a router of a kind compares a network with the original one.

    `answers` are those of the original network and of the other one, for the kinds that read them.
    """
    features = FEATURES[kind](maps).double()
    return torch.cat([features, answer_statistics(*answers)], 1) if kind in READ_ANSWERS else features


class Router(nn.Module):
    """A linear score of a sample's features for each network beside the original one.

    Samples whose highest score is above `threshold` are answered by the network that has it, the others by the original
    one. With `density`, samples that resemble nothing in the calibration are answered by the original one, too.

    Args:
        kind: A key of FEATURES.
        weight: The weights of the features (F,); for several networks one after the other.
        bias: The bias, or that of each network (E,).
        threshold: The threshold.
        sizes: The number of features of each network (E,), where there are several.
        density: What the calibration images looked like, if samples unlike them are to be told.
    """

    weight: Tensor
    bias: Tensor
    threshold: Tensor
    sizes: Tensor | None

    def __init__(
        self,
        kind: str,
        weight: Tensor,
        bias: float | Tensor,
        threshold: float,
        *,
        sizes: Tensor | None = None,
        density: Density | None = None,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("weight", weight.double())
        self.register_buffer("bias", torch.as_tensor(bias, dtype=torch.float64).clone())
        self.register_buffer("threshold", torch.tensor(threshold, dtype=torch.float64))
        self.register_buffer("sizes", sizes)
        self.density = density

    @property
    def reads_answers(self) -> bool:
        """Whether all networks must have answered a sample before it is routed."""
        return self.kind in READ_ANSWERS

    @property
    def networks(self) -> int:
        """The number of networks beside the original one."""
        return 1 if self.sizes is None else len(self.sizes)

    def forward(self, maps: Maps, answers: Sequence[Answers] = ()) -> Tensor:
        """Return the scores (N,), float64, of the only other network: higher means that it is the better one."""
        return features_of(self.kind, maps, answers).double() @ self.weight + self.bias

    def features_of(self, maps: Sequence[Maps], answers: Sequence[Answers] = ()) -> list[Tensor]:
        """Return the features (N, F) of each other network, from its maps and the answers of all networks."""
        pairs = [(answers[0], other) for other in answers[1:]] if answers else [()] * len(maps)
        return [features_of(self.kind, each, pair) for each, pair in zip(maps, pairs, strict=True)]

    def all_scores(self, features: Sequence[Tensor]) -> Tensor:
        """Return the scores (N, E) of each other network, from its features (N, F)."""
        if self.sizes is None:
            return (features[0] @ self.weight + self.bias).unsqueeze(1)
        weights = self.weight.split(self.sizes.tolist())
        return torch.stack([each @ weight for each, weight in zip(features, weights, strict=True)], 1) + self.bias

    def alarms(self, features: Sequence[Tensor]) -> Tensor:
        """Return which samples (N,) resemble nothing in the calibration; none where that was not asked."""
        if self.density is None:
            return torch.zeros(len(features[0]), dtype=torch.bool, device=features[0].device)
        found: Tensor = self.density(torch.cat(list(features), 1)) > self.density.threshold
        return found

    def to_bytes(self) -> bytes:
        """Serialise as safetensors."""
        return tensors_to_bytes(self.state_dict(), {"router": self.kind})

    @staticmethod
    def from_bytes(content: bytes, origin: Path) -> Router:
        """Return the router that `to_bytes` has serialised; StaleArtifact when the file is damaged or not a router."""
        state, meta = tensors_from_bytes(content, origin)
        own = {key: value for key, value in state.items() if not key.startswith(DENSITY)}
        told = {key.removeprefix(DENSITY): value for key, value in state.items() if key.startswith(DENSITY)}
        if meta.get("router") not in FEATURES or own.keys() - {"sizes"} != {"weight", "bias", "threshold"}:
            raise StaleArtifact(f"{origin} is not a router; give a router.safetensors that evaluate left")
        weight, bias, threshold, sizes = own["weight"], own["bias"], own["threshold"], own.get("sizes")
        networks = 1 if sizes is None else len(sizes.flatten())
        shaped = weight.ndim == 1 and bias.numel() == networks and threshold.numel() == 1
        summed = sizes is None or (sizes.dtype == torch.int64 and int(sizes.sum()) == len(weight.flatten()))
        if not (shaped and summed and all(own[name].is_floating_point() for name in ("weight", "bias", "threshold"))):
            raise StaleArtifact(f"{origin} is damaged: its tensors are not those of a router; run evaluate again")
        density = Density.of(told, origin) if told else None
        return Router(
            meta["router"], own["weight"], own["bias"], own["threshold"].item(), sizes=own.get("sizes"), density=density
        )


DENSITY = "density."  # in front of its tensors in a router's file
