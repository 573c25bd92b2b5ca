"""The ledger: what any classifiers answer on the same clean and degraded test images, with a cache of every cell."""
