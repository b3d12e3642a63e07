"""One spec and a search space: many runs, each in a run folder of its own, on Ray Tune."""
