"""HybridRepair: choose which images to label, propagate their labels, and learn from labelled and unlabelled ones."""
