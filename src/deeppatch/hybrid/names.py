"""Names that the command line offers; importing them costs nothing."""

from __future__ import annotations

# how images are chosen, and those methods that compare images by features, which another encoder can make
METHODS = (
    "none", "random", "mcp", "gini", "coreset", "badge", "ssl-random", "ssl-consistency", "ssl-consistency-imp",
    "hybrid",
)  # fmt: skip
BY_FEATURES = ("coreset", "hybrid")
# what a network learns from: labels and unlabelled images, or only one of them
USES = ("both", "labels", "unlabelled")
# the class biases of HybridRepair's protocol
BIASES = ("A", "B", "C")
