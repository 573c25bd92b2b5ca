"""Send what a stage measures to the sink that --sink names, beside the folder that the stage leaves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deeppatch.cli.locating import locate_all, run_folder
from deeppatch.storage import RECORD, read_record

LOGGED = {".csv", ".json", ".md", ".html", ".png"}  # files that are logged when a stage has finished


@contextmanager
def logged(stage: str, options: Any) -> Iterator[None]:
    """Log to the sink that the options name within the block, on one process; without a sink nothing is done.

    The values are those of every epoch that is trained. The files are the tables, pictures and pages that the stage
    leaves, where it finishes, and its record.

    Raises:
        UserError: When the sink's package is not installed.
    """
    if options.sink is None:
        yield
        return
    from deeppatch import runtime
    from deeppatch.report.sinks import logging_to, open_sink

    if runtime.rank() != 0:
        yield
        return
    folder = run_folder(stage, options, locate_all(stage, options))
    before = _when_written(folder)
    with logging_to(open_sink(options.sink, folder, f"deeppatch {options.model} {options.dataset}")) as sink:
        try:
            yield
        finally:
            if _when_written(folder) != before and (record := read_record(folder)):
                for name in [*record["outputs"], RECORD]:
                    if Path(name).suffix in LOGGED:
                        sink.log_file(folder / name)


def _when_written(folder: Path) -> int | None:
    """Return when the record of a folder was written; None where there is none."""
    path = folder / RECORD
    return path.stat().st_mtime_ns if path.is_file() else None
