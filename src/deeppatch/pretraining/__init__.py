"""Train a classifier from scratch by named recipes, and check the normalisation of published weights."""
