"""Score filters by the definition: one pass over the degraded validation images for each filter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.surgery import captured, convolutions, hooked


@dataclass(frozen=True)
class Sample:
    """A batch as the network reads it: normalised degraded images, their clean versions (featswap), labels."""

    degraded: Tensor
    labels: Tensor
    clean: Tensor | None = None


@dataclass(frozen=True)
class Silence:
    """perfloss: channel c of a layer's output is 0, before the normalisation that follows."""

    channel: int
    source: None = None

    def __call__(self, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        """Edit the layer's output in place (a forward hook)."""
        output[:, self.channel] = 0
        return output


@dataclass(frozen=True)
class SwapIn:
    """featswap: channel c of a layer's output is what the same images give without degradation."""

    channel: int
    source: Tensor

    def __call__(self, _module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        """Edit the layer's output in place (a forward hook)."""
        output[:, self.channel] = self.source[:, self.channel]
        return output


Scores = dict[str, list[float]]
Ticker = Callable[[], object]


def perfloss(
    network: nn.Module, samples: Sequence[Sample], done: Scores, keep: Callable[[Scores], object], tick: Ticker,
    *, amp: bool = False,
) -> Scores:  # fmt: skip
    """Score each filter acc(base) - acc(silenced) on degraded images (TOSEM 2023); the lowest are most suspicious.

    `done` holds layers scored before; `keep` receives all scores after each further layer; `tick` is called after
    each (filter, batch) pass.
    """

    def edits(conv: nn.Conv2d, sample: Sample) -> Iterator[Silence]:
        return map(Silence, range(conv.out_channels))

    return _score(network, samples, done, keep, tick, edits, sign=-1, amp=amp)


def featswap(
    network: nn.Module, samples: Sequence[Sample], done: Scores, keep: Callable[[Scores], object], tick: Ticker,
    *, amp: bool = False,
) -> Scores:  # fmt: skip
    """Score each filter acc(swapped) - acc(degraded) on one fixed degraded draw; the highest are most suspicious.

    Arguments as for `perfloss`; every sample has its clean version.
    """

    def edits(conv: nn.Conv2d, sample: Sample) -> Iterator[SwapIn]:
        if sample.clean is None:
            raise ValueError("featswap needs the clean version of every sample")
        device = sample.clean.device
        with captured(conv) as outputs, runtime.autocast(device, amp):
            network(sample.clean)
        return (SwapIn(channel, outputs[0]) for channel in range(conv.out_channels))

    return _score(network, samples, done, keep, tick, edits, sign=1, amp=amp)


@torch.inference_mode()
def _score(
    network: nn.Module, samples: Sequence[Sample], done: Scores, keep: Callable[[Scores], object], tick: Ticker,
    edits: Callable[[nn.Conv2d, Sample], Iterator[Silence] | Iterator[SwapIn]], *, sign: int, amp: bool,
) -> Scores:  # fmt: skip
    network.eval()
    total = sum(len(sample.labels) for sample in samples)
    base = sum(_right(network, sample, amp) for sample in samples)
    scores = dict(done)
    for name, conv in convolutions(network).items():
        if name in scores:
            continue
        right = [0] * conv.out_channels
        for sample in samples:
            for edit in edits(conv, sample):
                with hooked(conv, edit):
                    right[edit.channel] += _right(network, sample, amp)
                tick()
        scores[name] = [sign * (count - base) / total for count in right]
        keep(scores)
    return {name: scores[name] for name in convolutions(network)}


def _right(network: nn.Module, sample: Sample, amp: bool) -> int:
    with runtime.autocast(sample.labels.device, amp):
        logits = network(sample.degraded)
    return int((logits.argmax(1) == sample.labels).sum())
