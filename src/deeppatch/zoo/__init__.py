"""Model zoo: architectures, published weights, normalisation inside the model."""
