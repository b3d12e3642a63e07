"""Which images are kept for people to look at: spread over all, and mostly the same for two networks."""

import numpy as np

from llrflow.runs.predictions import Predictions


def shown(correct):
    made = Predictions.__new__(Predictions)
    made.n, made.correct = len(correct), correct  # type: ignore[misc]
    return made.shown.tolist()


def test_two_networks_keep_mostly_the_same_images():
    n, rng = 1000, np.random.default_rng(0)
    everything = shown(np.ones(n, bool))
    assert everything == sorted(everything) and np.diff(everything).max() < 300 and len(everything) == 8
    for _ in range(20):
        some, others = rng.random((2, n)) < 0.8
        one, other = shown(some), shown(others)
        assert some[one].all() and others[other].all() and len(one) == len(other) == 8
        assert len({*one} & {*other}) >= 3
    few = np.zeros(n, bool)
    few[[5, 700]] = True
    assert shown(few) == [5, 700] and shown(np.zeros(3, bool)) == []
