"""Makes the package of this repository importable; behind the standard library, because of src/select.py."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "src"))
