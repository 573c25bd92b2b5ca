"""Time an epoch of training, its data included, against bare training steps of the same network on a ready tensor.

python benchmarks/training.py [-m resnet32] [-b 256] [--device cpu|cuda] [--amp] [--processor_time]
    [--earlier REVISION] [--output FILE]

Each round times one epoch as `correct` runs it (view random: shuffled, blurred, on the device; with --augment cropped
and mirrored too) and as many bare steps (forward, backward, SGD) on one ready, normalised batch; which comes first
alternates. The ratio is the median over the rounds, so that what else the machine does falls on both. The last columns
are the time of an epoch relative to one of fine-tuning and of `replace, plain`, of all methods in turn: that is a patch
whose convolutions get gradients of all filters. Each is timed in its second epoch of a turn, because the first one
gets its memory from the system, which a training does once. With --processor_time these are of the processor, which
what else the machine does disturbs less; DEEPPATCH_THREADS=1 makes them those of one thread. With --earlier another
process trains the same epochs as a revision before this one did, in turns with all others, and one more column has the
time of each method relative to the same method there.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import earlier
import machine
import pandas as pd
import torch
from torch.nn import functional as F

from deeppatch import runtime
from deeppatch.data import views
from deeppatch.data.corruptions import SIGMAS, GaussianBlur
from deeppatch.data.sources import Images
from deeppatch.graph.hooks import convolutions
from deeppatch.patching import units
from deeppatch.patching.attachment import attach
from deeppatch.training import cross_entropy, sgd, train_epoch
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.classifier import Classifier

RATIO = 0.25
PLAIN = "replace, plain"
METHODS = ("finetune", "replace", PLAIN, "crtunit")


def main() -> None:
    """Print a table, and write it as CSV."""
    options = parser().parse_args()
    device = machine.prepared(options.device)
    images, base = earlier.inputs(options, device)
    times = relative(base, images, options)
    frame = pd.DataFrame(
        [(method, *measure(method, base, images, options)) for method in METHODS],
        columns=["method", "bare_images_s", "epoch_images_s", "percent_of_bare"],
    )
    frame["epoch_of_finetune"] = [ratio(times[method], times[METHODS[0]]) for method in METHODS]
    frame["epoch_of_plain"] = [ratio(times[method], times[PLAIN]) for method in METHODS]
    if options.earlier:
        frame["epoch_of_earlier"] = [ratio(times[method], times[before(method)]) for method in METHODS]
    print(f"{machine.heading(device)}; {options.model}, batches of {options.batch_size}")
    print(frame.to_string(index=False, float_format="%.2f"))
    machine.write(frame, options, device, images=f"random, {len(images)} an epoch")


def parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark's options."""
    found = machine.parser(__doc__ or "")
    found.add_argument("-m", "--model", choices=sorted(ARCHITECTURES), default="resnet32")
    found.add_argument("-b", "--batch_size", type=int, default=256, metavar="N")
    found.add_argument("--batches", type=int, default=4, metavar="N", help="batches an epoch (default: 4)")
    found.add_argument("--rounds", type=int, default=15, metavar="N", help="epochs that are timed (default: 15)")
    found.add_argument("--augment", action="store_true", help="crop and mirror as well as blur")
    found.add_argument("--amp", action="store_true", help="bfloat16")
    found.add_argument("--processor_time", action="store_true", help="of relative times (default: time on the wall)")
    found.add_argument("--earlier", metavar="REVISION", help="take turns with a revision, as git calls it")
    return found


def measure(method: str, base: Classifier, images: Images, options: argparse.Namespace) -> tuple[float, float, float]:
    """Return images a second of bare steps and of epochs, and the second in percent of the first."""
    epoch, bare = whole_epoch(method, base, images, options), bare_steps(method, base, images, options)
    device, times = images.labels.device, []
    for round_ in range(2 + options.rounds):
        pair = {call: runtime.seconds(call, device) for call in ((epoch, bare) if round_ % 2 else (bare, epoch))}
        times.append((pair[bare], pair[epoch]))
    measured = times[2:]  # the first two warm up
    bare_s, epoch_s = (len(images) / statistics.median(column) for column in zip(*measured, strict=True))
    return bare_s, epoch_s, 100 * statistics.median(one / other for one, other in measured)


def relative(base: Classifier, images: Images, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of an epoch of each method in each round, in which all take turns; `before` names others."""
    device = images.labels.device
    epochs = {method: whole_epoch(method, base, images, options) for method in METHODS}
    clocks: dict[str, Callable[[], float]] = {
        method: partial(earlier.second_epoch_s, epoch, device, options.processor_time)
        for method, epoch in epochs.items()
    }
    given = {key: value for key, value in vars(options).items() if key not in ("output", "question")}
    with earlier.epochs_of(options.earlier, given) if options.earlier else nullcontext() as seconds:
        if seconds:
            clocks |= {before(method): partial(seconds, method) for method in METHODS if method != PLAIN}
        rounds = [{name: clock() for name, clock in clocks.items()} for _ in range(2 + options.rounds)]
    return {name: [each[name] for each in rounds[2:]] for name in clocks}  # the first two warm up


def before(method: str) -> str:
    """Return the name of a method as the earlier revision trains by it; `replace` was of the plain form there."""
    return f"{'replace' if method == PLAIN else method}, earlier"


def ratio(times: list[float], usual: list[float]) -> float:
    """Return the time of one method relative to another, the median over the rounds."""
    return statistics.median(own / one for own, one in zip(times, usual, strict=True))


@contextmanager
def form_of(method: str) -> Iterator[None]:
    """Let convolutions with new filters take the plain form within the block, where that is the method."""
    usual = units.can_spare
    if method == PLAIN:
        units.can_spare = lambda *_given: False
    try:
        yield
    finally:
        units.can_spare = usual


def trained(method: str, base: Classifier, images: Images) -> tuple[Classifier, list[torch.nn.Parameter]]:
    """Return a copy of the network in training mode, and what is trained: all of it, or a patch of every layer."""
    model = copy.deepcopy(base).train()
    if method == "finetune":
        return model, list(model.parameters())
    channels = {
        name: list(range(max(1, round(RATIO * conv.out_channels))))
        for name, conv in convolutions(model.network).items()
    }
    attachment = attach(
        model.network,
        channels,
        "replace" if method == PLAIN else method,
        model.normalize(views.to_float(images.pixels[:2])),
    )
    attachment.enter_training()
    return model, attachment.parameters()


def whole_epoch(method: str, base: Classifier, images: Images, options: argparse.Namespace) -> Callable[[], object]:
    """Return a function that trains an epoch as `correct` does."""
    model, parameters = trained(method, base, images)
    blur = GaussianBlur(SIGMAS)
    stream = views.Shuffled(images, options.batch_size, 2021, 0, blur, options.augment)
    optimizer, schedule = sgd(parameters, lr=1e-4, momentum=0.9, weight_decay=5e-4, steps=10**6)

    def epoch() -> None:
        with form_of(method):
            train_epoch(model, stream, cross_entropy, optimizer, schedule, amp=options.amp)

    return epoch


def bare_steps(method: str, base: Classifier, images: Images, options: argparse.Namespace) -> Callable[[], object]:
    """Return a function that makes as many training steps on one ready, normalised batch."""
    model, parameters = trained(method, base, images)
    optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9, weight_decay=5e-4)
    pixels = model.normalize(views.to_float(images.pixels[: options.batch_size]))
    pixels, labels = pixels.contiguous(memory_format=torch.channels_last), images.labels[: options.batch_size]

    def steps() -> None:
        for _ in range(options.batches):
            with form_of(method), runtime.autocast(pixels.device, options.amp):
                loss = F.cross_entropy(model.network(pixels), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

    return steps


if __name__ == "__main__":
    main()
