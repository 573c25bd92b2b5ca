"""Names that the command line offers; importing them costs nothing."""

from __future__ import annotations

METHODS = (
    "source", "bn-1", "bn-alpha", "bn-prior", "tent", "eta", "eata", "sar", "cotta", "lame", "lame-knn", "roid",
)  # fmt: skip
STREAMS = ("reset", "continual", "mixed", "ordered", "single")
