"""compare: measure everything that was repaired on the same test images, and check requirements."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deeppatch.cli.annotate.command import add_bias, split_problems
from deeppatch.cli.arguments import add_degradations
from deeppatch.cli.compare import further
from deeppatch.cli.declared import Folder
from deeppatch.cli.options import StageOptions
from deeppatch.data import corruption_names
from deeppatch.errors import UserError
from deeppatch.ledger import requirements

if TYPE_CHECKING:
    from torch import nn

    from deeppatch.cli.compare.loading import Member
    from deeppatch.cli.context import Context
    from deeppatch.ledger.ledger import Ledger

STAGE = "compare"
DESCRIPTION = "Compare: measure all networks that the stages left on the same test images, and check requirements."
EXAMPLE = "-m resnet32 -d cifar10 -n gaussion,all --limit 2000"
REPAIR = False
RANKS = True
ARTIFACTS = (
    Folder(
        "compare",
        "all networks on the same images; what each answered lies in `cells/`, so that a second run is fast",
        {
            "ledger.csv": "a row for each network, view, severity and measure: estimate, 95 % interval, and images",
            "report.html": "a page to hand over, with everything inside: verdict, tables, charts, images, cost, limits",
            "model-card.md": "the same for a model card, with a YAML head",
            "ledger.json": "the networks with accuracies under the keys of RobustBench, definitions, and what was read",
        },
        {
            "gate.md": "with `--require`: which requirements are met, as Markdown for a pull request",
            "attack.csv": "with `--attack`: robust accuracy and attack success rates, with counts",
            "adaptation.csv": "with `--adapt`: methods of test-time adaptation and all networks on streams",
            "adaptation_by_level.csv": "with `--adapt`: accuracies by level of the degradations",
            "latency.csv": "with `--latency`: milliseconds an image, alone and in a batch, on this device",
        },
    ),
)


@dataclass(frozen=True, kw_only=True)
class Options(StageOptions):
    """The options of compare: degradations, networks in files, and requirements on one of the networks."""

    noise_type: str = corruption_names.DEFAULT
    severity: str | None = None
    hold_out: str | None = None
    degradation: str = ""
    bias: str | None = None
    splits: Path | None = None
    split_digest: str = ""
    files: list[Path] = field(default_factory=list)
    networks: list[Path] = field(default_factory=list)
    require: list[str] = field(default_factory=list)
    gate: str | None = None
    confident: bool = False
    adapt: list[str] = field(default_factory=list)
    stream: list[str] = field(default_factory=list)
    per_corruption: int = 200
    single: int = 20
    adapt_batch: int = 200
    attack: str | None = None
    attack_images: int = 500
    latency: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this stage."""
    group = parser.add_argument_group("compare")
    add_degradations(group)
    add_bias(group)
    group.add_argument(
        "files",
        type=Path,
        nargs="*",
        metavar="PATH",
        help="networks to compare with the base: files, folders that stages left, or whole output folders "
        "(default: all that the stages left for this model and data set)",
    )
    group.add_argument("--networks", type=Path, nargs="+", default=[], metavar="PATH", help="further ones")
    further.add_arguments(parser)
    gate = parser.add_argument_group("gate")
    gate.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="EXPR",
        help="a requirement, such as clean>=-0.2, blurred>=+5, weather>=0, fog:3>=0 (points gained over the base), "
        "flips<=1 (newly wrong images in percent) or bytes<=200000 (stored beside the base); may be repeated. One that "
        "is broken ends the command with status 1",
    )
    gate.add_argument(
        "--gate",
        metavar="NAME",
        help="the network that the verdict is about, and that must meet the requirements (default: switched, else the "
        "only one besides the base)",
    )
    gate.add_argument(
        "--confident",
        action="store_true",
        help="the worse end of the 95 %% interval must meet the requirements (default: the estimate)",
    )


def problems(options: Options) -> list[str]:
    """Return the problems with the requirements."""
    messages = []
    parsed = []
    for text in options.require:
        try:
            parsed.append(requirements.requirement(text))
        except UserError as error:
            messages.append(f"--require {error}")
    specification = corruption_names.parse(options.noise_type, _severity(options))
    known = requirements.known_names(specification, held_out=options.hold_out is not None)
    try:
        requirements.check_names(parsed, known, own=bool(specification.own))
    except UserError as error:
        messages.append(f"--require {error}")
    messages += split_problems(options) + further.problems(options)
    if not options.require:
        messages += ["--confident belongs to requirements; give some with --require"] if options.confident else []
    return messages


def run(options: Options) -> None:
    """Measure the networks, write and print the ledger, and check the requirements."""
    from deeppatch.cli.compare import inputs, report
    from deeppatch.cli.compare.baselines import missing_baselines
    from deeppatch.cli.compare.loading import PRETRAINED, load_base
    from deeppatch.cli.context import open_stage

    context = open_stage(options, STAGE)
    base, model = load_base(context)
    members = inputs.members(context, base, model)
    inputs.check_requirements(context)
    target = inputs.target(context, list(members))
    calibrated = inputs.calibration_images(context, members)
    further.check(context, list(members), target, calibrated)
    context.begin()
    ledger = measured(context, base, model, members)
    networks = {ledger.base: model, **{name: member.network for name, member in members.items()}}
    ledger = further.write_tables(context, ledger, networks, target, calibrated)
    missing = missing_baselines(context, members) if base == PRETRAINED else ()
    report.write_report(context, ledger, target, missing)


def measured(context: Context, base: str, model: nn.Module, members: dict[str, Member]) -> Ledger:
    """Return the ledger of the base and of these networks."""
    from deeppatch.cli.compare import inputs
    from deeppatch.ledger.comparing import compare
    from deeppatch.progress import info

    options = context.options
    ledger = compare(
        {base: model, **{name: member.network for name, member in members.items()}},
        context.data,
        context.corruption,
        base=base,
        held_out=context.held_out,
        cells=inputs.cells(options),
        batch_size=options.batch_size,
        amp=options.amp,
        seed=options.seed,
        images_digest=context.stage.facts["data"]["parts"]["test"]["digest"],
    )
    used = inputs.calibration_images(context, members)
    if len(used):
        info(f"left out of every row: {len(used)} test images that routers were calibrated on")
        ledger = ledger.without(used)
    return inputs.described(context, ledger, members)


def _severity(options: Options) -> str | None:
    """Return the severities, where the degradations have some; that they have none is told elsewhere."""
    return options.severity if corruption_names.has_severities(options.noise_type) else None
