"""From arguments to checked options."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from types import ModuleType

from deeppatch import runtime
from deeppatch.cli import options as command_line
from deeppatch.data import sources
from deeppatch.data.corruptions import ALIASES
from deeppatch.localization.names import RANKINGS, SIDES
from deeppatch.patching.names import CORRECTIONS, UNITS
from deeppatch.zoo.architectures import ARCHITECTURES


def parse(module: ModuleType, arguments: Sequence[str], prefix: str) -> argparse.Namespace:
    """Parse and check the arguments of a command module (STAGE, DESCRIPTION, EXAMPLE, add_arguments, run).

    REPAIR = False leaves out the options that DeepPatch's stages alone share. `preset(options)`, where there is one,
    returns the defaults that an option puts in place of the usual ones.
    """
    parser = command_line.parser_for(module.STAGE, prefix, module.DESCRIPTION, module.EXAMPLE)
    choices = command_line.Choices(
        ARCHITECTURES, sources.names(), ALIASES, RANKINGS, CORRECTIONS, UNITS, SIDES, runtime.default_device()
    )
    command_line.add_shared(parser, choices, repair=getattr(module, "REPAIR", True))
    module.add_arguments(parser)
    options = parser.parse_args(command_line.normalise(arguments), argparse.Namespace(prefix=prefix))
    if hasattr(module, "preset"):
        parser.set_defaults(**module.preset(options))
        options = parser.parse_args(command_line.normalise(arguments), argparse.Namespace(prefix=prefix))
    command_line.check(options)
    sources.check_name(options.dataset)
    options.command = f"{parser.prog} {shlex.join(arguments)}".strip()
    return options
