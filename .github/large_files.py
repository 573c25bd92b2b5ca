"""Refuse files above 500 KB before they are committed: weights, data and artifacts do not belong in the repository."""

from __future__ import annotations

import sys
from pathlib import Path

LIMIT = 500_000  # bytes

if __name__ == "__main__":
    sizes = {name: Path(name).stat().st_size for name in sys.argv[1:]}
    large = [f"{name} has {size:,} bytes, git keeps {LIMIT:,} at most" for name, size in sizes.items() if size > LIMIT]
    sys.exit("\n".join(large) or 0)
