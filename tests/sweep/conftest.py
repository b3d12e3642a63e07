"""A small sweep of the tiny spec, real processes of it, and what its folder says."""

import json

import pytest


@pytest.fixture(scope="session")
def sweeping(tiny):
    """sweeping(**fields of the sweep block) -> the tiny spec with a sweep of lambda, mu following, two at a time."""

    def make(**fields):
        spec = tiny()
        weights = {
            "lambda": {"type": "loguniform", "low": 0.01, "high": 1, "path": "objective.terms.gamma.weight"},
            "mu": {
                "type": "derived",
                "path": "objective.terms.slope.weight",
                "from": "objective.terms.gamma.weight",
                "times": 0.75,
            },
        }
        defaults = {"trials": 4, "decide_on": "test", "concurrency": 2, "rung": {"every": 4}}
        spec["sweep"] = {**defaults, "parameters": weights, **fields}
        return spec

    return make


@pytest.fixture(scope="session")
def record_of():
    """record_of(folder) -> its sweep.json."""
    return lambda folder: json.loads((folder / "sweep.json").read_text())
