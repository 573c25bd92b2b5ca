"""pretrain: load or train a network, and measure it clean and at every blur level."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from deeppatch import options as command_line
from deeppatch.artifacts import tensors_to_bytes
from deeppatch.commands.context import Context, open_stage
from deeppatch.commands.corrected import load_corrected
from deeppatch.commands.measure import right_by_level, training_table
from deeppatch.data import views
from deeppatch.progress import info
from deeppatch.report import scores
from deeppatch.training import accuracy, cross_entropy, fit, predict, sgd
from deeppatch.zoo import weights
from deeppatch.zoo.classifier import Classifier
from deeppatch.zoo.entries import COMMON_STATS, ENTRIES, Entry

STAGE = "pretrain"
DESCRIPTION = "Pretrain: load published weights, or train; report standard accuracy and accuracy at every blur level."
EXAMPLE = "-m resnet32 -d cifar10"
DOCTOR_MARGIN = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this stage alone."""
    group = parser.add_argument_group("pretrain")
    group.add_argument("--train", action="store_true", help="train even where there are published weights")
    group.add_argument("--mean", type=float, nargs=3, metavar="M", help="mean of the channels, in [0, 1] (default: the zoo's)")
    group.add_argument("--std", type=float, nargs=3, metavar="S",
                       help="standard deviation of the channels (default: the zoo's)")
    group.add_argument("--state", choices=["pretrained", "corrected"], default="pretrained",
                       help="measure the pretrained network, or what correct left for -c, -f, --crt_type (default: pretrained)")
    parser.set_defaults(problems=problems)


def problems(options: argparse.Namespace) -> list[str]:
    """Return what is wrong with this stage's own options."""
    found = []
    if options.train and options.weights:
        found.append("--train and --weights exclude each other: train anew, or use the file")
    if (options.mean is None) != (options.std is None):
        found.append("--mean and --std go together: give both")
    if options.std is not None and min(options.std) <= 0:
        found.append("--std: give numbers above 0")
    if options.state == "corrected" and (options.train or options.mean):
        found.append("--state corrected measures what is there: leave out --train, --mean and --std")
    return found


def run(options: argparse.Namespace) -> None:
    """Measure one state of a model; the pretrained one is left as weights for the later stages."""
    if options.state == "corrected":
        context = open_stage(options, f"eval-{command_line.patch_name(options)}")
        model = load_corrected(context, context.base_model())
        facts: dict[str, Any] = {"weights": f"corrected: {command_line.patch_name(options)}"}
    else:
        context = open_stage(options, "pretrain")
        model, facts = pretrained(context)
        if model is None:
            return
        context.stage.write("weights.safetensors", tensors_to_bytes(model.state_dict()))
    report(context, model, facts)
    context.stage.finish()
    context.checkpoint().remove()


def pretrained(context: Context) -> tuple[Classifier | None, dict[str, Any]]:
    """Return the model and where it is from; None when -r finds the stage finished."""
    options = context.options
    entry = ENTRIES.get((options.dataset, options.model))
    if options.weights is None and (options.train or entry is None):
        why = "--train" if options.train else f"no weights are published for {options.model} on {options.dataset}"
        info(f"weights: training from scratch ({why})")
        return (None, {}) if context.already_finished() else train(context, entry)
    path = options.weights or weights.fetch(entry.url)  # type: ignore[union-attr]
    state = weights.read(path)
    context.stage.inherit(path, path.read_bytes())
    if context.already_finished():
        return None, {}
    origin = "given" if options.weights else f"published, {entry.top1} % on test"  # type: ignore[union-attr]
    info(f"weights: {path} ({origin})")
    mean, std = normalisation(context, entry, state)
    network = context.new_network()
    weights.load_network(network, {k.removeprefix("network."): v for k, v in state.items()}, path)
    return context.place(Classifier(network, mean, std)), {"weights": f"{path.name}, {origin}"}


def normalisation(context: Context, entry: Entry | None, state: dict[str, torch.Tensor]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation: as given, as saved in the file, of the zoo, or of the training images."""
    saved = [state.pop(f"normalize.{key}", None) for key in ("mean", "std")]
    if context.options.mean:
        mean, std, origin = context.options.mean, context.options.std, "as given"
    elif saved[0] is not None and saved[1] is not None:
        mean, std, origin = saved[0].flatten().tolist(), saved[1].flatten().tolist(), "from the weights file"
    elif entry is not None:
        mean, std, origin = list(entry.mean), list(entry.std), "of the zoo"
    else:
        pixels = views.to_float(context.splits.train.pixels)
        mean, std = pixels.mean((0, 2, 3)).tolist(), pixels.std((0, 2, 3)).tolist()
        origin = "of the training images"
        if context.options.weights:
            origin += "; give --mean and --std if the weights were made with others"
    info(f"normalisation: mean {_list(mean)}, std {_list(std)} ({origin})")
    return mean, std


def train(context: Context, entry: Entry | None) -> tuple[Classifier, dict[str, Any]]:
    """Train from scratch with SGD and a cosine schedule, keeping the best epoch on clean val images."""
    options, splits = context.options, context.splits
    model = context.place(Classifier(context.new_network(), *normalisation(context, entry, {})))
    epochs = [
        views.Shuffled(splits.train, options.batch_size, options.seed, epoch, augment=context.source.augment)
        for epoch in range(options.max_epoch)
    ]
    optimizer, schedule = sgd(
        model.parameters(), lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay,
        steps=sum(map(len, epochs)),
    )  # fmt: skip
    val = views.clean(splits.val, context.blur, options.batch_size)
    history = fit(
        model, epochs, lambda m: accuracy(predict(m, val, amp=options.amp), val.labels), loss=cross_entropy,
        optimizer=optimizer, schedule=schedule, checkpoint=context.checkpoint(), amp=options.amp, label="pretrain",
    )  # fmt: skip
    context.stage.write_table("history.csv", training_table(history))
    return model, {"weights": f"trained here, {options.max_epoch} epochs, best {history.best + 1}"}


def report(context: Context, model: Classifier, facts: dict[str, Any]) -> None:
    """Measure on test, print, and write metrics."""
    test = context.splits.test
    right = right_by_level(context, model, test)
    measured = scores.accuracies(right, context.sigmas)
    doctor = None
    entry = ENTRIES.get((context.options.dataset, context.options.model))
    if entry and context.options.state == "pretrained" and not context.options.train:
        doctor = examine(context, model, measured["clean"], entry.top1)
    context.stage.write_json("metrics.json", {
        "dataset": context.source.name, "model": context.options.model, **facts, "test_images": len(test),
        "limit": context.options.limit, "accuracy_percent": measured, "normalisation_doctor": doctor,
    })  # fmt: skip
    frame = scores.table({command_line.patch_name(context.options) if context.options.state == "corrected" else "pretrained": measured})
    context.stage.write_table("metrics.csv", frame)
    print(scores.show(frame))
    info(f"accuracy in percent on {len(test)} test images; written to {Path(context.stage.folder)}")


def examine(context: Context, model: Classifier, measured: float, published: float) -> dict[str, Any] | None:
    """Normalisation doctor: where clean accuracy is far under the published one, try the common constants on val."""
    noise = 3 * (published * (100 - published) / len(context.splits.test)) ** 0.5
    if measured >= published - max(100 * DOCTOR_MARGIN, noise):
        return None
    info(f"doctor: {measured:.2f} % is far under the published {published:.2f} %; trying other normalisation constants on val")
    val = views.clean(context.splits.val, context.blur, context.options.batch_size)
    tried = {}
    for name, (mean, std) in COMMON_STATS.items():
        other = context.place(Classifier(model.network, mean, std))
        tried[name] = 100 * accuracy(predict(other, val), val.labels)
        info(f"doctor: {tried[name]:6.2f} %  {name}: mean {_list(mean)}, std {_list(std)}")
    best = max(tried, key=lambda name: tried[name])
    mean, std = COMMON_STATS[best]
    advice = f"--mean {_list(mean)} --std {_list(std)}"
    if tried[best] < published - 100 * DOCTOR_MARGIN - noise:
        advice = "none of them explains it: check that the weights belong to this network and data set"
    info(f"doctor: best on val: {best}; {advice}")
    return {"published_percent": published, "val_accuracy_percent": tried, "best": best, "advice": advice}


def _list(values: Any) -> str:
    return " ".join(f"{value:.4g}" for value in values)
