"""Names that the command line offers; importing them costs nothing."""

from __future__ import annotations

# what the stage decompose does
ACTIONS = ("validate", "essential", "mutual-info", "finetune", "sweep")
