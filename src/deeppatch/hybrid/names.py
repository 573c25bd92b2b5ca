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
# how relearn trains: thresholds, an averaged teacher and a corrected prior, or HybridRepair's recipe
PSEUDO_LABELS = ("safe", "published")
# their learning rates: that with which the safe recipe begins, and that of the published one and of every warm start
LEARNING_RATES = {"safe": 0.03, "published": 1e-3}
# which parameters the safe recipe trains: all, the last layer, or that and the normalisations
SCOPES = ("all", "head", "norms")
# the threshold of entropy, but for a number: by distance to the training images, or the mean of the pool
TAUS = ("auto", "mean")
# what coreset starts from: the training images, or the first image of the pool, as in the published code
CORESET_STARTS = ("train", "pool")
# how unlabelled images are drawn in the published recipe: by certainty, measured after each epoch or once, or evenly
POOL_WEIGHTS = ("dynamic", "fixed", "equal")
# how much an image without label counts in the safe recipe: wholly above a threshold, or by its confidence
WEIGHTINGS = ("threshold", "soft")
# what relearn does without labels or training: it corrects the class prior
PRIOR = "prior"
