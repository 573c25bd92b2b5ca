"""The names that published checkpoints have for tensors where those of the zoo's networks are others."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Renaming:
    """How the names in a published checkpoint become those of the zoo.

    `starts` has for the start of a published name, as a regular expression, what replaces it. `unused` are the starts
    of names that the published network defines and never reads.
    """

    starts: dict[str, str]
    unused: tuple[str, ...] = ()

    def apply(self, name: str) -> str | None:
        """Return the zoo's name for a published one, the name itself where no rule has it, or None if it is unused.

        >>> RENAMINGS["mobilenet"].apply("layers.3.bn2.weight"), RENAMINGS["rescnn_svhn_weak"].apply("conv_3.0.bias")
        ('blocks.3.4.weight', None)
        """
        if name.startswith(self.unused):
            return None
        for start, new in self.starts.items():
            if found := re.match(start, name):
                return found.expand(new) + name[found.end() :]
        return name


# by one of the networks that have these names; a renaming is used for any network that then fits exactly
RENAMINGS: dict[str, Renaming] = {
    "mobilenet": Renaming({
        r"conv1\.": "stem.0.", r"bn1\.": "stem.1.", r"linear\.": "fc.",
        r"layers\.(\d+)\.conv1\.": r"blocks.\1.0.", r"layers\.(\d+)\.bn1\.": r"blocks.\1.1.",
        r"layers\.(\d+)\.conv2\.": r"blocks.\1.3.", r"layers\.(\d+)\.bn2\.": r"blocks.\1.4.",
    }),
    "simcnn_weak": Renaming({r"conv_(\d+)\.": r"\1.0.", r"fc_4\.": "5."}),
    "simcnn_svhn_weak": Renaming({r"conv_(\d+)\.": r"\1.0.", r"fc_2\.": "3."}),
    "rescnn_bn": Renaming({r"fc_12\.": "classifier.2."}),
    "rescnn_poorfit": Renaming({r"classifier\.1\.": "classifier.2."}),  # without a dropout before it
    "rescnn_svhn_weak": Renaming({r"classifier\.1\.": "classifier.2."}, unused=("conv_3.",)),
}  # fmt: skip
