"""Methods that retrain the whole network: the baselines that patches are compared with."""
