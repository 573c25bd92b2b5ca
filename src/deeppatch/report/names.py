"""Names that the command line offers; importing them costs nothing."""

from __future__ import annotations

SINKS = ("mlflow", "tensorboard")
