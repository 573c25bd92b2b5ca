"""Which size the images of a run get, from its options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deeppatch.data.names import slug
from deeppatch.data.scaling import Sizing
from deeppatch.zoo.resolve import resolve


def sizing_of(options: Any) -> Sizing:
    """Return the size that --image_size names, else for image files the one that the model was made for."""
    cache = Path(options.output_dir, slug(options.dataset), "decoded")
    made_for = resolve(options.model, options.image_size).image_size
    return Sizing(options.image_size, options.resize == "squash", made_for, cache)
