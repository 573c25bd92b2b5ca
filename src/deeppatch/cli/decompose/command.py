"""decompose: evaluate and fine-tune a head that reads k features for each class."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeppatch.cli.arguments import add_names, model_name
from deeppatch.cli.declared import Folder
from deeppatch.cli.options import DEFAULT_K, DEFAULT_KS, StageOptions
from deeppatch.decomposition.names import ACTIONS
from deeppatch.errors import UserError

if TYPE_CHECKING:
    from deeppatch.cli.context import Context
    from deeppatch.decomposition.features import LastLayer

STAGE = "decompose"
DESCRIPTION = """Decompose the last layer: each class reads only its k most influential features.

  validate      accuracy with the whole last layer and with the decomposed one; multiply-adds and time of both
  essential     correct images of each class when its features, or all others, are replaced by noise
  mutual-info   mean mutual information between the classes' sets of features
  finetune      train the decomposed network, or with --head_only its head on cached features
  sweep         accuracy against k, without and with head-only fine-tuning"""
EXAMPLE = "validate -m resnet20a -d cifar10"
REPAIR = False
# the actions that use an option
ACTIONS_BY_OPTION = {
    "csg": ("essential", "mutual-info"), "head_only": ("finetune",), "draws": ("essential",),
    "lr": ("finetune", "sweep"), "max_epoch": ("finetune", "sweep"),
}  # fmt: skip
IDLE = ("validate", "lr")  # the published command accepts it
# the authors' networks for CIFAR-10 have shortcuts without parameters
PUBLISHED_MODELS = {f"resnet{depth}": f"resnet{depth}a" for depth in (20, 32, 44, 56, 110)}
PUBLISHED_DATA = {**dict.fromkeys(PUBLISHED_MODELS.values(), "cifar10"), "resnet50": "imagenet"}
ARTIFACTS = (
    Folder(
        "decompose-validate",
        "the decomposed last layer compared with the whole one",
        {
            "metrics.json": "accuracy on test and multiply-adds of each head",
            "metrics.csv": "the same as a table",
            "timing.json": "microseconds that each head takes for a batch",
        },
    ),
    Folder(
        "decompose-essential",
        "whether a class needs its features",
        {
            "essential.json": "correct images with noise at the features of a class, and at all others",
            "essential.csv": "the same by class, as a table",
            "essential.png": "a plot of the same by class",
        },
    ),
    Folder(
        "decompose-mutual-info",
        "how much the features of two classes tell about each other",
        {
            "mutual-info.json": "mean mutual information between the classes' features, for each set of features",
            "mutual-info.csv": "the same as a table",
        },
    ),
    Folder(
        "decompose-finetune[-head]",
        "the decomposed network after fine-tuning",
        {
            "weights.safetensors": "the weights of the best epoch on val",
            "history.csv": "loss, accuracy on val and accuracy on test after each epoch",
            "metrics.json": "accuracy on test before and after the best epoch",
        },
    ),
    Folder(
        "decompose-sweep",
        "accuracy against the number of features",
        {
            "sweep.json": "accuracy on test of the whole layer and, for each k, decomposed and fine-tuned",
            "sweep.csv": "accuracy for each k, as a table",
            "sweep.png": "a plot of the same",
        },
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(StageOptions):
    """The options of decompose."""

    action: str
    indices: list[Path] | None = None
    k: list[int] | None = None
    csg: Path | None = None
    draws: int = 5
    lr: float = 2e-4
    max_epoch: int = 5
    head_only: bool = False
    batch_size: int = 64


class PublishedModel(argparse.Action):
    """Take the network that the published command names behind the action, and its data unless -d came before."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        """Set model and dataset in the namespace."""
        try:
            model = PUBLISHED_MODELS.get(values) or model_name(values)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        namespace.model = model
        if namespace.dataset == parser.get_default("dataset"):
            namespace.dataset = PUBLISHED_DATA.get(model, namespace.dataset)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this stage."""
    parser.add_argument("action", choices=list(ACTIONS), metavar="ACTION", help=", ".join(ACTIONS))
    parser.add_argument(
        "model",
        nargs="?",
        action=PublishedModel,
        default=argparse.SUPPRESS,
        metavar="MODEL",
        help="the network as the authors' command names it: resnet20 is resnet20a on cifar10, resnet50 is on imagenet; "
        "the same as -m and -d",
    )
    add_names(parser, "weights", "-w", "--weights_file")
    add_names(parser, "gpu", "-g")
    group = parser.add_argument_group("decompose")
    group.add_argument(
        "-i",
        "--indices",
        "--inds_file",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="index files {class: [features]} (default: those of influence for each -k)",
    )
    group.add_argument(
        "-k",
        type=int,
        nargs="+",
        metavar="K",
        help="features per class (default: 5; mutual-info 5 10 20; sweep 5 to 64)",
    )
    group.add_argument(
        "--csg",
        type=Path,
        metavar="FILE",
        help="checkpoint of class-specific-gate training to compare with (essential, mutual-info)",
    )
    group.add_argument(
        "--draws",
        type=int,
        default=5,
        metavar="N",
        help="number of random draws of the noise (essential; default: %(default)s)",
    )
    tuning = parser.add_argument_group("finetune, sweep")
    tuning.add_argument(
        "--lr", type=float, default=2e-4, metavar="X", help="learning rate of Adam, idle in validate (default: 2e-4)"
    )
    tuning.add_argument(
        "-e",
        "--max_epoch",
        "--epochs",
        "--num_epochs",
        type=int,
        default=5,
        metavar="N",
        help="epochs (default: %(default)s)",
    )
    tuning.add_argument(
        "--head_only",
        action="store_true",
        help="train only the head, on cached features of images without crop and flip (finetune)",
    )
    parser.set_defaults(batch_size=64)


def problems(options: Options) -> list[str]:
    """Return the problems with this stage's own options."""
    messages = [
        f"--{name} can only be used with {' and '.join(actions)}, not with {options.action}"
        for name, actions in ACTIONS_BY_OPTION.items()
        if options.action not in actions
        and (options.action, name) != IDLE
        and getattr(options, name) != getattr(Options, name)
    ]
    if options.draws < 1:
        messages.append(f"--draws {options.draws}: give at least 1")
    messages += [f"-k {k}: give at least 1 feature" for k in options.k or [] if k < 1]
    if options.k and options.indices:
        messages.append("-k and -i exclude each other: a file brings its own k")
    if options.indices and options.action == "sweep":
        messages.append("-i does not go with sweep, which extracts the features for every k itself")
    if options.action == "finetune" and len(options.indices or options.k or [0]) > 1:
        messages.append("finetune takes one set of features: give one -i, or one -k")
    return messages


def run(options: Options) -> None:
    """Run the action and write its results."""
    from deeppatch.cli.context import open_stage
    from deeppatch.cli.decompose import inputs

    context = open_stage(options, STAGE)
    RUN[options.action](context, inputs.last_layer(context))


def ks(options: Options) -> list[int]:
    """Return the numbers of features of -k, or the defaults of the action."""
    return options.k or DEFAULT_KS.get(options.action, [DEFAULT_K])


def _validate(context: Context, last: LastLayer) -> None:
    from deeppatch.cli.decompose import inputs, report
    from deeppatch.decomposition import validation

    compared = validation.heads(last.layer, inputs.named_sets(context, last, ks(context.options)))
    test = last.features("test")
    table = validation.validate(compared, test)
    batch = test.values[:256]
    report.write_validation(context, table, len(test), validation.times(compared, batch), len(batch))


def _essential(context: Context, last: LastLayer) -> None:
    from deeppatch.cli.decompose import inputs, report
    from deeppatch.decomposition.essential import essential

    options = context.options
    sets = inputs.sets_with_layers(context, last, ks(options))
    counts = {
        name: essential(owner.features("test"), owner.layer, indices, draws=options.draws, seed=options.seed)
        for name, (owner, indices) in sets.items()
    }
    report.write_essential(context, counts)


def _mutual_information(context: Context, last: LastLayer) -> None:
    from deeppatch.cli.decompose import inputs, report
    from deeppatch.decomposition.mutual_information import mean_mutual_information

    sets = {name: indices for name, (_, indices) in inputs.sets_with_layers(context, last, ks(context.options)).items()}
    report.write_mutual_information(context, mean_mutual_information(sets, last.layer.in_features))


def _finetune(context: Context, last: LastLayer) -> None:
    from deeppatch.artifacts import state_digest
    from deeppatch.cli.decompose import inputs, report
    from deeppatch.decomposition.tune import tune_head, tune_network

    ((name, indices),) = inputs.named_sets(context, last, ks(context.options)).items()
    if context.already_finished():
        return
    base, settings = state_digest(last.model.state_dict()), inputs.tune_settings(context.options)
    checkpoint = context.checkpoint(indices=indices.tolist(), base=base)
    if context.options.head_only:
        tuned = tune_head(last, indices, settings, checkpoint=checkpoint)
    else:
        tuned = tune_network(last.model, indices, last.data, settings, checkpoint=checkpoint)
    report.write_finetuned(context, tuned, name, base)
    context.checkpoint().remove()


def _sweep(context: Context, last: LastLayer) -> None:
    from deeppatch.cli.decompose import inputs, report
    from deeppatch.decomposition.tune import sweep

    if context.already_finished():
        return
    options, width = context.options, last.layer.in_features
    fitting = [k for k in ks(options) if k <= width]
    if not fitting:
        raise UserError(f"-k {min(options.k)}: {options.model} has {width} features; give at most {width}")
    table, whole = sweep(last, fitting, inputs.tune_settings(options))
    report.write_sweep(context, table, whole, len(last.data.test))


RUN = {
    "validate": _validate, "essential": _essential, "mutual-info": _mutual_information, "finetune": _finetune,
    "sweep": _sweep,
}  # fmt: skip
