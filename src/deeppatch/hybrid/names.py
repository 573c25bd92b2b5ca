"""Names that the command line offers; importing them costs nothing."""

from __future__ import annotations

# the selection methods, and those that compare images by features, for which an encoder can be trained
METHODS = (
    "none", "random", "mcp", "margin", "entropy", "gini", "coreset", "badge", "typiclust", "uherding", "ssl-random",
    "ssl-consistency", "ssl-consistency-imp", "hybrid",
)  # fmt: skip
BY_FEATURES = ("coreset", "typiclust", "uherding", "hybrid")
# what relearn learns from: labels and unlabelled images, or only one of them
USES = ("both", "labels", "unlabelled")
# the class biases of HybridRepair's protocol
BIASES = ("A", "B", "C")
