"""Completion of commands in a shell, by shtab, which the extra `completion` installs."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path

from deeppatch.cli.options import SCRIPTS
from deeppatch.cli.parsing import StageParser, add_options
from deeppatch.errors import UserError, closest

SHELLS = ("bash", "zsh")


def script(arguments: Sequence[str]) -> str:
    """Return the completion script for the shell that `arguments` name."""
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        given = " ".join(arguments)
        raise UserError(f"--print-completion {given}: name a shell{closest(given, SHELLS)}: {' or '.join(SHELLS)}")
    try:
        import shtab
    except ImportError as error:
        raise UserError("--print-completion needs shtab: pip install 'deeppatch[completion]'") from error
    parser = whole_parser()
    for action in _actions(parser):
        if action.type is Path:
            action.complete = shtab.DIRECTORY if action.metavar == "DIR" else shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(parser, shell=arguments[0]))


def whole_parser() -> argparse.ArgumentParser:
    """Return the parser of `deeppatch STAGE ...`, with the options of every stage."""
    parser = StageParser(prog="deeppatch")
    parser.add_argument("--version", action="store_true", help="show the version")
    parser.add_argument("--print-completion", choices=SHELLS, help="write a completion script")
    stages = parser.add_subparsers(title="stages", dest="stage")
    for stage in SCRIPTS:
        module = importlib.import_module(f"deeppatch.cli.{stage}.command")
        first_line = module.DESCRIPTION.splitlines()[0]
        add_options(stages.add_parser(stage, help=first_line, allow_abbrev=False), module)
    return parser


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the actions of a parser and of its stages'."""
    actions = list(parser._actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            actions += [own for stage in action.choices.values() for own in stage._actions]
    return actions
