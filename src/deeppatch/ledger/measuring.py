"""Fill the cells of a ledger: every network on every view, each degraded image made once, each cell cached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.cache import ContentCache, Entry
from deeppatch.distributed import ranks
from deeppatch.errors import UserError
from deeppatch.graph.hooks import eval_mode
from deeppatch.ledger.records import MIXED, Outcomes
from deeppatch.ledger.streams import Stream
from deeppatch.progress import counting
from deeppatch.zoo.classifier import device_of

Cells = dict[tuple[str, str], Outcomes]
NAMES = tuple(field.name for field in fields(Outcomes))


def depends_on_neighbours(network: nn.Module) -> bool:
    """Tell whether a network's answer for an image depends on the other images of its batch.

    Such a network says so by an attribute `vote` or `depends_on_batch` that is true.
    """
    return bool(getattr(network, "vote", False) or getattr(network, "depends_on_batch", False))


def measure(
    networks: Mapping[str, nn.Module],
    streams: Sequence[Stream],
    digests: Mapping[str, str],
    *,
    cache: ContentCache | None = None,
    amp: bool = False,
) -> Cells:
    """Return the outcomes of each network on each view, and keep them in a cache.

    A batch is degraded once and goes through all networks that lack the cell; the cells of a view are written when the
    view is finished. Ranks share the views, and every rank returns all outcomes.

    Args:
        networks: Classifiers of pixels (N, 3, H, W) in [0, 1]. One that has a method `route` says which network
            answered each image (N,): last in what that returns, behind the logits, or as `expert` of what a method
            `answer` returns beside it. Where that is None, nothing is known of its routes.
        streams: What `ledger_streams` returns.
        digests: What `network_digest` returns for each network.
        cache: Where cells are kept (default: nowhere).
        amp: Whether networks run in bfloat16.

    Raises:
        UserError: When a network's method `route` returns something else.
    """
    wanted = [
        (name, stream)
        for stream in streams
        for name, network in networks.items()
        if not (stream.view.kind == MIXED and depends_on_neighbours(network))
    ]

    def facts(name: str, stream: Stream) -> dict[str, object]:
        machine = {"amp": amp, "batch_size": stream.batches.batch_size, "device": device_of(networks[name]).type}
        return {"network": digests[name], "view": stream.view.digest, **machine}

    def known() -> Cells:
        found = {(name, each.view.name): cache.read(facts(name, each)) for name, each in wanted} if cache else {}
        return {key: _outcomes(entry.tensors) for key, entry in found.items() if entry is not None}

    found = ranks.broadcast_from_rank0(known)
    lacking = [
        (stream, [name for name, own in wanted if own is stream and (name, stream.view.name) not in found])
        for stream in streams
    ]
    pending = [(stream, names) for stream, names in lacking if names][runtime.rank() :: runtime.ranks()]
    own: Cells = {}
    with counting(sum(len(stream.batches) * len(names) for stream, names in pending), "comparing") as tick:
        for stream, names in pending:
            answers = answers_on(stream, {name: networks[name] for name in names}, amp=amp, tick=tick)
            for name, each in answers.items():
                own[name, stream.view.name] = each
                if cache:
                    cache.write(facts(name, stream), Entry(_tensors(each)))
    for part in ranks.all_gather(own):
        found |= part
    return {(name, stream.view.name): found[name, stream.view.name] for name, stream in wanted}


@torch.inference_mode()
def answers_on(
    stream: Stream, networks: Mapping[str, nn.Module], *, amp: bool = False, tick: Callable[[], object] = lambda: None
) -> dict[str, Outcomes]:
    """Return the outcomes of networks on one view, each batch of which is made once; `tick` is called after each."""
    rows: dict[str, list[dict[str, Tensor]]] = {name: [] for name in networks}
    with ExitStack() as stack:
        for network in networks.values():
            stack.enter_context(eval_mode(network))
        for pixels, labels in stream.batches:
            for name, network in networks.items():
                device = device_of(network)
                with runtime.autocast(device, amp):
                    answer = _answer(name, network, pixels.to(device), labels.to(device))
                rows[name].append({key: value.cpu() for key, value in answer.items()})
                tick()
    joined = {name: {key: torch.cat([each[key] for each in own]) for key in own[0]} for name, own in rows.items()}
    return {name: _outcomes(tensors) for name, tensors in joined.items()}


def _answer(name: str, network: nn.Module, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
    route, answer = (getattr(network, method, None) for method in ("route", "answer"))
    if not callable(route):
        return _measured(network(pixels), labels)
    if callable(answer):
        found = answer(pixels)
        logits, routed = getattr(found, "logits", None), getattr(found, "expert", None)
    else:
        found = route(pixels)
        logits, routed = (found[0], found[-1]) if isinstance(found, (tuple, list)) and len(found) > 1 else (None, None)
    if not isinstance(logits, Tensor):
        raise UserError(
            f"{name}: its method route must return logits (N, classes) first, and last which network answered each "
            "image (N,); give a method that does something else another name"
        )
    if routed is None:  # it routes, and does not say where
        return _measured(logits, labels)
    if not isinstance(routed, Tensor) or routed.shape != labels.shape:
        raise UserError(
            f"{name}: its method route must say last which network answered each image, a tensor of {len(labels)} "
            f"numbers, or None; it says {_described(routed)}"
        )
    return {**_measured(logits, labels), "routed": routed.long()}


def _described(value: object) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _measured(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return prediction, confidence, log-likelihood and Brier score of logits (N, C), from a softmax in float64."""
    log_probabilities = logits.double().log_softmax(1)
    probabilities = log_probabilities.exp()
    true = labels.unsqueeze(1)
    of_true = probabilities.gather(1, true).squeeze(1)
    return {
        "prediction": logits.argmax(1),
        "confidence": probabilities.max(1).values,
        "log_likelihood": log_probabilities.gather(1, true).squeeze(1),
        "brier": (probabilities**2).sum(1) - of_true**2 + (1 - of_true) ** 2,
    }


def _tensors(outcomes: Outcomes) -> dict[str, Tensor]:
    given = {name: getattr(outcomes, name) for name in NAMES}
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in given.items() if value is not None}


def _outcomes(tensors: Mapping[str, Tensor]) -> Outcomes:
    return Outcomes(**{name: value.numpy() for name, value in tensors.items()})
