"""A sweep on a named cluster of several nodes (processes of this machine), one of which dies."""

import json
import sys
import time

import pytest

pytestmark = pytest.mark.long

# A head that runs no trials, and two nodes with one CPU each, of which one is killed and replaced on demand. In a
# process of its own: Ray forks, which a process with JAX in it should not do.
CLUSTER = """
import sys, time
from pathlib import Path
from ray.cluster_utils import Cluster
memory = {"object_store_memory": 80 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **memory})
nodes = [cluster.add_node(num_cpus=1, **memory) for _ in range(2)]
Path("address.tmp").write_text(cluster.address)
Path("address.tmp").rename("address")
while not Path("end").exists():
    if nodes and Path("kill").exists():
        cluster.add_node(num_cpus=1, **memory)
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        nodes.clear()
        Path("killed").touch()
    time.sleep(0.1)
cluster.shutdown()
"""


def wait_for(path, process, seconds=240):
    end = time.monotonic() + seconds
    while not (found := list(path.parent.glob(path.name))):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.05)
    return found[0]


@pytest.fixture
def cluster(start, tmp_path):
    """The process of a cluster, which does what files in tmp_path/cluster ask for."""
    (tmp_path / "cluster").mkdir()
    process = start([], tmp_path / "cluster", [sys.executable, "-c", CLUSTER])
    yield process
    (tmp_path / "cluster" / "end").touch()
    process.communicate(timeout=60)


def test_a_node_dies_and_every_trial_ends(cluster, sweeping, write_spec, start, tmp_path, llrflow_command):
    changes = {"evaluate.attacks.pgd": None, "train.steps": 200, "checkpoint.every": 20, "sweep.rung.every": 100}
    path = write_spec(tmp_path / "spec.yaml", sweeping(trials=3, concurrency=None), changes)
    folder, control = tmp_path / "out", tmp_path / "cluster"
    address = wait_for(control / "address", cluster).read_text()
    process = start(["sweep", path, "--out", folder, "--address", address, "--json"], tmp_path)
    wait_for(folder / "runs", process)
    while not list(folder.glob("runs/*/checkpoints/manifests/*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    (control / "kill").touch()
    wait_for(control / "killed", process)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    trials = json.loads(out)["trials"]
    assert [(trial["state"], trial["step"]) for trial in trials] == [("finished", 200)] * 3
    for trial in trials:
        mine, alone = folder / "runs" / trial["run"], tmp_path / trial["run"]
        code, _, err = llrflow_command("run", mine / "spec.yaml", "--out", alone, cwd=tmp_path)
        assert code == 0, err
        assert (mine / "metrics.jsonl").read_text() == (alone / "metrics.jsonl").read_text()
