"""A small sweep of the tiny spec, real processes of it, and what its folder says."""

import json
import struct

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


@pytest.fixture(scope="session")
def events_in():
    """events_in(folder) -> ((step, tag, value) of its TensorBoard files, its hyperparameters by name, its metrics)."""

    def read(folder):
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

        numbers, parameters, metrics = [], {}, set()
        for file in sorted(folder.iterdir()):
            data, at = file.read_bytes(), 0
            while at < len(data):
                (length,) = struct.unpack_from("<Q", data, at)
                event = Event.FromString(data[at + 12 : at + 12 + length])
                at += length + 16
                for value in event.summary.value:
                    if value.metadata.plugin_data.plugin_name == "hparams":
                        found = HParamsPluginData.FromString(value.metadata.plugin_data.content)
                        given = found.session_start_info.hparams.items()
                        parameters |= {name: of.string_value or of.number_value for name, of in given}
                        metrics |= {of.name.tag for of in found.experiment.metric_infos}
                    else:
                        numbers.append((event.step, value.tag, pytest.approx(value.simple_value)))
        return numbers, parameters, metrics

    return read
