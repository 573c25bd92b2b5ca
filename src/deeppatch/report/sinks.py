"""Sinks, to which values and files of a run go beside its folder: TensorBoard and MLflow."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from deeppatch.errors import UserError, closest
from deeppatch.progress import MEASURED, info
from deeppatch.report.names import SINKS

AS_TEXT = {".csv", ".json", ".md"}
MOST_TEXT = 100_000  # bytes of a file that TensorBoard shows as text


class Sink(Protocol):
    """Where values and files of a run go."""

    def log_scalar(self, name: str, value: float, step: int) -> None:
        """Take a value at a step, which is the number of an epoch from 1 on where something is trained."""

    def log_file(self, path: Path) -> None:
        """Take a file that the run has left."""

    def close(self) -> None:
        """Finish the run."""


class TensorBoardSink:
    """Writes event files that TensorBoard reads, into a folder; tables, JSON and Markdown are shown as text."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard") from error
        self.writer: Any = SummaryWriter(str(folder))

    def log_scalar(self, name: str, value: float, step: int) -> None:
        """Write a scalar."""
        self.writer.add_scalar(name, value, step)

    def log_file(self, path: Path) -> None:
        """Write a table, JSON or Markdown as text; other files are left out."""
        if path.suffix in AS_TEXT and path.stat().st_size <= MOST_TEXT:
            lines = path.read_text().splitlines()
            self.writer.add_text(path.name, "\n".join(f"    {line}" for line in lines))

    def close(self) -> None:
        """Flush and close the event file."""
        self.writer.close()


class MLflowSink:
    """Writes a run of an experiment to MLflow, where MLFLOW_TRACKING_URI says, or where MLflow does by default."""

    def __init__(self, experiment: str, run: str) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise _missing("mlflow") from error
        self.client: Any = mlflow.MlflowClient()
        known = self.client.get_experiment_by_name(experiment)
        number = self.client.create_experiment(experiment) if known is None else known.experiment_id
        self.run: str = self.client.create_run(number, run_name=run).info.run_id

    def log_scalar(self, name: str, value: float, step: int) -> None:
        """Write a metric; characters that MLflow has no place for in a name become underscores."""
        self.client.log_metric(self.run, re.sub(r"[^\w\-. :/]", "_", name), value, step=step)

    def log_file(self, path: Path) -> None:
        """Write a file as an artifact of the run."""
        self.client.log_artifact(self.run, str(path))

    def close(self) -> None:
        """Mark the run as finished."""
        self.client.set_terminated(self.run)


def open_sink(name: str, folder: Path, experiment: str) -> Sink:
    """Return the sink of a name for one run.

    Args:
        name: One of SINKS.
        folder: The folder of the run; TensorBoard's event files go to tensorboard/ beside it.
        experiment: The name of MLflow's experiment.

    Raises:
        UserError: When there is no such sink, or its package is not installed.
    """
    if name == "tensorboard":
        return TensorBoardSink(folder.parent / "tensorboard" / folder.name)
    if name == "mlflow":
        return MLflowSink(experiment, folder.name)
    raise UserError(f"sink={name!r}{closest(name, SINKS)}: choose one of {', '.join(SINKS)}")


@contextmanager
def logging_to(sink: Sink) -> Iterator[Sink]:
    """Send what is measured within the block to a sink, and close it: loss and accuracy of every epoch of a training.

    A sink that fails, because its server is out of reach, ends no training: a message says so, and nothing further is
    sent to it.

    >>> class Printed:
    ...     def log_scalar(self, name, value, step): print(name, value, step)
    ...     def log_file(self, path): print(path)
    ...     def close(self): print("closed")
    >>> from deeppatch.progress import measured
    >>> with logging_to(Printed()):
    ...     measured("patch", 1, loss=0.25)
    patch/loss 0.25 1
    closed
    """
    guarded = _Guarded(sink)
    handler, level, propagate = _Handler(guarded), MEASURED.level, MEASURED.propagate
    MEASURED.addHandler(handler)
    MEASURED.setLevel(logging.DEBUG)
    MEASURED.propagate = False  # values are not messages
    try:
        yield guarded
    finally:
        MEASURED.removeHandler(handler)
        MEASURED.setLevel(level)
        MEASURED.propagate = propagate
        guarded.close()


class _Guarded:
    """A sink that drops everything after the first failure of another one, which it reports."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.failed = False

    def log_scalar(self, name: str, value: float, step: int) -> None:
        """Pass a value on."""
        self._try(lambda: self.sink.log_scalar(name, value, step))

    def log_file(self, path: Path) -> None:
        """Pass a file on."""
        self._try(lambda: self.sink.log_file(path))

    def close(self) -> None:
        """Close the sink, also after a failure."""
        self._try(self.sink.close, always=True)

    def _try(self, act: Callable[[], object], *, always: bool = False) -> None:
        if self.failed and not always:
            return
        try:
            act()
        except Exception as error:
            if self.failed:
                return
            self.failed = True
            kind = type(self.sink).__name__
            info(f"WARNING: {kind} failed ({' '.join(str(error).split())}); nothing further is logged to it")


class _Handler(logging.Handler):
    """Hands the values of records on to a sink."""

    def __init__(self, sink: Sink) -> None:
        super().__init__(logging.DEBUG)
        self.sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        """Log the finite ones of a record's values."""
        series, step, values = record.__dict__["measured"]
        for name, value in values.items():
            if math.isfinite(value):
                self.sink.log_scalar(f"{series}/{name}", value, step)


def _missing(package: str) -> UserError:
    return UserError(f"--sink {package} needs {package}; install it with: pip install 'deeppatch[sinks]'")
