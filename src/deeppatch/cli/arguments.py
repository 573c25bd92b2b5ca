"""The arguments that all stages share, in groups."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deeppatch.cli.corrections import corrected_file
from deeppatch.cli.options import DEFAULT_RATIO, DEFAULT_SEED
from deeppatch.data import corruption_names, names
from deeppatch.errors import UserError
from deeppatch.localization.names import RANKINGS, SIDES
from deeppatch.patching.names import PUBLISHED_PATCHES, UNITS
from deeppatch.report.names import SINKS
from deeppatch.retrain.names import METHODS, STATISTICS_OF_PATCH
from deeppatch.zoo.names import ARCHITECTURE_NAMES, FORMS, check_model


class Suggestions(list[str]):
    """Values that completion offers for an option; any other is accepted, and checked by the option's type."""

    def __contains__(self, value: object) -> bool:
        return True


class PublishedPatch(argparse.Action):
    """Set the options that a value of DeepPatch's published -p stands for; what contradicts it is told later."""

    def __call__(self, parser: object, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        """Set them in the namespace."""
        namespace.published_patch = values
        for name, value in PUBLISHED_PATCHES[values].items():
            if hasattr(namespace, name):  # stages that train nothing have no train_on
                setattr(namespace, name, value)


def add_names(parser: argparse.ArgumentParser, dest: str, *names: str) -> None:
    """Let an option that a parser has be called by further names."""
    action = next(action for action in parser._actions if action.dest == dest)
    action.option_strings = [*action.option_strings, *names]
    parser._option_string_actions |= dict.fromkeys(names, action)


def model_name(text: str) -> str:
    """Return a network's name, as argparse wants it: ArgumentTypeError when it has no form that there is."""
    try:
        return check_model(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_shared(parser: argparse.ArgumentParser, *, repair: bool = True) -> None:
    """Add the options of every stage, in groups; `repair` adds those that DeepPatch's stages share."""
    _add_data(parser)
    _add_machine(parser)
    if repair:
        _add_training(parser)
        _add_repair(parser)


def _add_data(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data and model")
    data.add_argument(
        "-m",
        "--model",
        type=model_name,
        choices=Suggestions(sorted(ARCHITECTURE_NAMES)),
        default="resnet32",
        metavar="NAME",
        help=f"network of the zoo: {', '.join(sorted(ARCHITECTURE_NAMES))}; or {FORMS}, a function of the number of "
        "classes (default: resnet32)",
    )
    data.add_argument(
        "-d",
        "--dataset",
        default="digits",
        metavar="NAME",
        help=f"{', '.join(names.names())}, folder:PATH with PATH/{{train,test}}/CLASS/IMAGE, npz:FILE with arrays "
        "images and labels, or hf:PATH with a saved data set of Hugging Face's "
        "(default: digits, which needs no download)",
    )
    data.add_argument(
        "--base",
        "--weights",
        dest="weights",
        type=Path,
        metavar="FILE",
        help="base weights to use, .safetensors or torch checkpoint (default: published ones, or those of pretrain)",
    )
    data.add_argument(
        "--val_share",
        type=float,
        metavar="X",
        help="share of the training part that is val (default: 1/50, up to a fifth where that is under 1,000 images)",
    )
    data.add_argument(
        "--limit", type=int, metavar="N", help="use a class-stratified subset of N images of every split (default: all)"
    )
    data.add_argument(
        "--image_size",
        type=int,
        metavar="N",
        help="width and height of the images in pixels (default: for image files those that the model was made for, or "
        "their own; for other data sets their own)",
    )
    data.add_argument(
        "--resize",
        choices=["crop", "squash"],
        default="crop",
        help="how images get that size: scaled, and the centre cut; or squashed (default: crop)",
    )
    data.add_argument("--data_dir", type=Path, default=Path("data"), metavar="DIR", help="data sets (default: data)")
    data.add_argument(
        "--output_dir",
        type=Path,
        default=Path("output"),
        metavar="DIR",
        help="artifacts of all stages (default: output)",
    )


def _add_machine(parser: argparse.ArgumentParser) -> None:
    machine = parser.add_argument_group("machine")
    machine.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="where to compute (default: cuda where there is one, else cpu)",
    )
    machine.add_argument("--gpu", type=int, default=0, metavar="N", help="index of the CUDA device (default: 0)")
    machine.add_argument(
        "-b", "--batch_size", type=int, default=256, metavar="N", help="images per batch (default: %(default)s)"
    )
    machine.add_argument(
        "--amp", action="store_true", help="run networks in bfloat16 where that is safe (default: float32)"
    )
    machine.add_argument(
        "--seed",
        type=int,
        default=DEFAULT_SEED,
        metavar="N",
        help=f"seed of splits, random choices and training (default: {DEFAULT_SEED})",
    )
    machine.add_argument(
        "-r",
        "--resume",
        action="store_true",
        help="continue an interrupted run; the result is that of an uninterrupted one",
    )
    machine.add_argument(
        "--sink",
        choices=list(SINKS),
        help="where loss and accuracy of every epoch go as well, and tables and pages at the end; needs "
        "deeppatch[sinks] (default: nowhere)",
    )


def _add_training(parser: argparse.ArgumentParser) -> None:
    training = parser.add_argument_group("training")
    training.add_argument(
        "--lr", type=float, default=0.01, metavar="X", help="initial learning rate of SGD (default: 0.01)"
    )
    training.add_argument("--momentum", type=float, default=0.9, metavar="X", help="momentum of SGD (default: 0.9)")
    training.add_argument("--weight_decay", type=float, default=5e-4, metavar="X", help="L2 penalty (default: 5e-4)")
    training.add_argument(
        "-e",
        "--max_epoch",
        type=int,
        default=50,
        metavar="N",
        help="epochs when pretrain trains a network; ignored by other stages (default: 50)",
    )


def add_number(
    group: argparse._ActionsContainer, *names: str, what: str, default: object = None, kind: Callable[[str], Any] = int
) -> None:
    """Add an option that takes a number, a whole one N, or X with another `kind`; its help says `what` it is."""
    group.add_argument(*names, type=kind, default=default, metavar="N" if kind is int else "X", help=what)


def _reporting(read: Callable[[str], str | None]) -> Callable[[str], str | None]:
    """Return a function that reports a mistake in the value of an option as argparse does."""

    def checked(text: str) -> str | None:
        try:
            return read(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return checked


def add_degradations(group: argparse._ArgumentGroup) -> None:
    """Add the options that say which degradations there are, and which of them are held out."""
    group.add_argument(
        "-n",
        "--noise_type",
        type=_reporting(corruption_names.on_command_line),
        default="gaussion",
        metavar="NAME[,NAME...]",
        help=f"{corruption_names.HELP} (default: gaussion)",
    )
    group.add_argument(
        "--severity",
        type=_reporting(corruption_names.severities_on_command_line),
        metavar="N[,N...]",
        help="severities, such as 1,3,5 or 2..4 (default: all five); gaussion has none",
    )
    group.add_argument(
        "--degraded",
        dest="noise_type",
        type=_reporting(corruption_names.folder),
        metavar="PATH",
        help="one's own degraded images, PATH/{train,test}/CLASS/IMAGE; the same as -n folder:PATH",
    )
    group.add_argument(
        "--hold_out",
        type=_reporting(corruption_names.on_command_line),
        metavar="NAME[,NAME...]",
        help="degradations of -n that are not used for ranking, training and calibration, and that are measured apart",
    )


def _add_repair(parser: argparse.ArgumentParser) -> None:
    stages = parser.add_argument_group("assess and correct")
    add_degradations(stages)
    stages.add_argument(
        "-f",
        "--fs_method",
        choices=sorted(RANKINGS),
        default="perfloss",
        help="how filters are ranked (default: perfloss)",
    )
    stages.add_argument(
        "-c",
        "--crt_method",
        choices=["patch", *METHODS, STATISTICS_OF_PATCH],
        default="patch",
        help="how the network is corrected: by a patch, or as a whole (default: patch)",
    )
    stages.add_argument(
        "--crt_type",
        choices=sorted(UNITS),
        default="replace",
        help="kind of patch: new filters, or correction units after the old ones (default: replace)",
    )
    stages.add_argument(
        "-p",
        "--pt_method",
        dest="crt_type",
        action=PublishedPatch,
        choices=list(PUBLISHED_PATCHES),
        help="the published spelling: DP is --crt_type replace, DC crtunit, DP-s replace with -n spatial, DP-SS that "
        "with --train_on sensei, and SS-DP that with --train_on clean, beside --base_from a network of sensei",
    )
    stages.add_argument(
        "--base_from",
        dest="weights",
        type=corrected_file,
        metavar="PATH",
        help="start from a corrected network: the folder that correct left for a whole network, as with -c sensei, or "
        "the file in it; the same as --base FILE",
    )
    stages.add_argument("--crt_epoch", type=int, default=20, metavar="N", help="epochs of the correction (default: 20)")
    stages.add_argument(
        "--susp_ratio",
        type=float,
        metavar="R",
        help=f"share of each layer's filters to patch, above 0 to 1 (default: {DEFAULT_RATIO}; "
        "with -f ratioestim the estimated one)",
    )
    stages.add_argument(
        "--susp_side",
        choices=list(SIDES),
        default="front",
        help="which part of the ranking to patch (default: front, the most suspicious)",
    )
    stages.add_argument(
        "--ranking",
        type=Path,
        metavar="FILE",
        help="a ranking.json to use instead of the one from assess for these options",
    )
    stages.add_argument(
        "--patch", type=Path, metavar="FILE", help="a patch.safetensors to use instead of the one from correct"
    )
    stages.add_argument(
        "--finetuned",
        type=Path,
        metavar="FILE",
        help="what correct left for a whole network, as with -c finetune, to use instead of the one for these options",
    )
