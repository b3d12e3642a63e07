"""What runs: Ray Tune, workers, the cluster."""
