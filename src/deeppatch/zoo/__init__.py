"""The model zoo: architectures, published weights, and classifiers with their normalisation."""
