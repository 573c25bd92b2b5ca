"""How the scripts of a study end: with a status, and one line for a mistake of the user."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import source  # noqa: F401

from deeppatch.errors import UserError

MISTAKE, INTERRUPTED = 2, 130


def exit_status(run: Callable[[], int]) -> int:
    """Return what a script returns, or 2 after a line about a mistake of the user or a file, or 130 after Ctrl-C."""
    try:
        status = run()
        sys.stdout.flush()
    except BrokenPipeError:  # the process that read the output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python's last flush goes
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}; choose another folder or file", file=sys.stderr)
        return MISTAKE
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("interrupted; finished jobs are kept: continue with the same command", file=sys.stderr)
        return INTERRUPTED
    return status
