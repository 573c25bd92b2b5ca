"""Entry points of the command line: which command a script or a stage's name runs, and how errors are reported."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import deeppatch
from deeppatch import progress
from deeppatch.cli.options import SCRIPTS
from deeppatch.cli.signals import Terminated, ended_in_order
from deeppatch.distributed import launch
from deeppatch.errors import RequirementsBroken, UserError, closest
from deeppatch.lock import released_at_end

COMMANDS = {script: stage for stage, script in SCRIPTS.items()}
SUMMARY = """usage: deeppatch STAGE [options]

DeepPatch, in order:
  pretrain   load or train a network and measure it            (src/eval.py)
  assess     rank the filters of every convolution             (src/select.py)
  correct    train a patch, or fine-tune                       (src/correct.py)
  evaluate   route each sample and compare networks            (src/switch.py)
  export     write networks and router to run elsewhere        (src/export.py)

Decomposing the Deep, after pretrain:
  influence  find each class's most influential features       (src/influence.py)
  decompose  validate, examine and fine-tune the sparse head   (src/decompose.py)

CNNSplitter, after pretrain:
  modularize split a network into a module for each class      (src/modularize.py)
  compose    let a module correct a weak model                 (src/compose.py)

HybridRepair, after pretrain:
  annotate   choose which images to label                      (src/annotate.py)
  relearn    repair with these labels and unlabelled images    (src/relearn.py)

Everything that was repaired:
  compare    all networks on the same images, and a gate       (src/compare.py)

  demo       all methods on the embedded digits, in minutes  (src/demo.py)

deeppatch STAGE --help explains the options of a stage.
deeppatch --version prints the version; deeppatch --print-completion bash (or zsh) writes a completion script."""


def main(script: str, arguments: Sequence[str] | None = None, prefix: str = "python src/{script}.py") -> None:
    """Run the command of a script in src/ and exit.

    The status is 2 on a user's mistake, which is one line, 130 on Ctrl-C and 143 on SIGTERM.
    """
    if arguments is None:
        arguments, prefix = sys.argv[1:], _as_typed(script, prefix)
    sys.exit(guarded(script, arguments, prefix))


def _as_typed(script: str, prefix: str) -> str:
    """Return how stages are started from here: by `src/` in this folder, or by the path that was typed."""
    typed = Path(sys.argv[0])
    if typed.name != f"{script}.py" or typed.parent.resolve() == Path("src").resolve():
        return prefix
    folder = shlex.quote(str(typed.parent)).replace("{", "{{").replace("}", "}}")
    return f"python {folder}/{{script}}.py"


def console() -> None:
    """Run `deeppatch STAGE ...`, where the package is installed; scripts' names are accepted for stages too."""
    stages = {stage: script for script, stage in COMMANDS.items()} | {script: script for script in COMMANDS}
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(SUMMARY)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    word, *rest = sys.argv[1:]
    if word == "--version":
        print(f"deeppatch {deeppatch.__version__}")
        sys.exit(0)
    if word == "--print-completion":
        sys.exit(_print_completion(rest))
    if word not in stages:
        choices = ", ".join(COMMANDS.values())
        sys.exit(_fail(f"{word}: no such stage{closest(word, stages)}; choose from {choices}"))
    main(stages[word], rest, "deeppatch {stage}")


def guarded(script: str, arguments: Sequence[str], prefix: str) -> int:
    """Run a command and return its exit status; a user's mistake is reported as one line on stderr."""
    # torchrun sends the signal on that every rank has had already, so that a second one means nothing
    orderly = ended_in_order() if launch.requested_ranks() == 1 else contextlib.nullcontext()
    try:
        with orderly, progress.console_output(), warnings_at_end():
            run(script, arguments, prefix)
    except UserError as error:
        return _fail(str(error))
    except RequirementsBroken as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        terminated = isinstance(error, Terminated)
        how = "ended by SIGTERM" if terminated else "interrupted"
        print(f"\n[info] {how}; finished work is kept: continue with the same command and -r", file=sys.stderr)
        return 143 if terminated else 130
    except BrokenPipeError:  # the process that read the output has ended
        return 1
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _fail(f"no space is left for {error.filename or 'the results'}; free some and run again with -r")
        if error.filename is None:
            raise
        return _fail(f"cannot write {error.filename}: {error.strerror}; choose another --output_dir or --data_dir")
    return 0


def _check_threads() -> None:
    """Raise UserError where OMP_NUM_THREADS is no number, before a library says so in words of its own."""
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    if not all(each.strip().isascii() and each.strip().isdecimal() and int(each) for each in threads.split(",")):
        raise UserError(f"OMP_NUM_THREADS={threads[:40]}: give a whole number above 0, or leave it unset")


@contextlib.contextmanager
def warnings_at_end() -> Iterator[None]:
    """Print what libraries warn of within the block when it has ended, each text once; none before an error's line."""
    show = warnings.showwarning
    texts: dict[str, None] = {}

    def keep(message: Warning | str, category: type[Warning], *_where: object) -> None:
        texts[f"{category.__name__}: {' '.join(str(message).split())}"] = None

    warnings.showwarning = keep  # type: ignore[assignment]
    try:
        yield
    except (UserError, OSError, KeyboardInterrupt, RequirementsBroken):
        texts.clear()
        raise
    finally:
        warnings.showwarning = show
        for text in texts:
            print(text, file=sys.stderr)


def run(script: str, arguments: Sequence[str], prefix: str) -> None:
    """Parse a command's arguments and run it; UserError passes through."""
    _check_threads()
    from deeppatch.cli import parsing
    from deeppatch.cli.locating import locate_all
    from deeppatch.cli.naming import IDENTITIES
    from deeppatch.cli.sinks import logged
    from deeppatch.data import corruption_names

    module = importlib.import_module(f"deeppatch.cli.{COMMANDS[script]}.command")
    command = shlex.join([*prefix.format(script=script, stage=COMMANDS[script]).split(), *arguments])
    with launch.joined_ranks(command):
        if launch.requested_ranks() > 1 and not getattr(module, "RANKS", False):
            raise UserError(f"{COMMANDS[script]} runs as one process; start it without torchrun: {command}")
        options = parsing.parse(module, arguments, prefix)
        parsing.check_files(options)
        if corruption_names.parse(getattr(options, "noise_type", corruption_names.DEFAULT)).own:
            from deeppatch.cli.degradation import content_digest

            options = replace(options, degradation=content_digest(options))
        if hasattr(module, "completed"):
            options = module.completed(options)
        stage = "eval" if getattr(options, "state", "") == "corrected" else module.STAGE
        if stage in IDENTITIES:
            locate_all(stage, options)
        with released_at_end(), logged(stage, options):
            module.run(options)


def _print_completion(arguments: Sequence[str]) -> int:
    from deeppatch.cli import completion

    try:
        print(completion.script(arguments))
    except UserError as error:
        return _fail(str(error))
    return 0


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2
