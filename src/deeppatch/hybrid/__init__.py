"""HybridRepair: choose which images to label, spread their labels, and learn from labelled and unlabelled ones."""
