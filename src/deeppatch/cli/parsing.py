"""From arguments to checked options."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from types import ModuleType

from deeppatch import runtime
from deeppatch.cli import options as command_line
from deeppatch.cli.methods import CORRECTIONS, RANKINGS
from deeppatch.data import names
from deeppatch.data.names import ALIASES
from deeppatch.localization.ranking import SIDES
from deeppatch.patching.units import UNITS
from deeppatch.zoo.architectures import ARCHITECTURES


def parse(module: ModuleType, arguments: Sequence[str], prefix: str) -> argparse.Namespace:
    """Parse and check the arguments of a command module (STAGE, DESCRIPTION, EXAMPLE, add_arguments, run).

    REPAIR = False leaves out the options that DeepPatch's stages alone share. `preset(options)`, where there is one,
    returns the defaults that an option puts in place of the usual ones.
    """
    parser = command_line.parser_for(module.STAGE, prefix, module.DESCRIPTION, module.EXAMPLE)
    choices = command_line.Choices(
        ARCHITECTURES, names.names(), ALIASES, RANKINGS, CORRECTIONS, UNITS, SIDES, runtime.default_device()
    )
    command_line.add_shared(parser, choices, repair=getattr(module, "REPAIR", True))
    module.add_arguments(parser)
    options = parser.parse_args(command_line.normalise(arguments), argparse.Namespace(prefix=prefix))
    if hasattr(module, "preset"):
        parser.set_defaults(**module.preset(options))
        options = parser.parse_args(command_line.normalise(arguments), argparse.Namespace(prefix=prefix))
    command_line.check(options)
    names.check_name(options.dataset)
    options.command = f"{parser.prog} {shlex.join(arguments)}".strip()
    return options
