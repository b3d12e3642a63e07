"""Four CPU devices for every in-process test, digits prepared once, and a tiny spec to start from."""

import gc
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from xla_flags import FLAGS, known

if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = " ".join(f"--{name}={value}" for name, value in known(FLAGS).items())
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="llrflow-tests-")
    os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="llrflow-tests-")  # not the developer's own
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # nobody reads where an operation of a test was written

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
# Here few small programs come twice, and writing them all would cost more.
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
jax.devices()  # starts the backend, so that no test can settle on another number

gc.set_threshold(100_000, 20, 100)  # tracing allocates a lot that lives for long

REPOSITORY = Path(__file__).parents[1]


def pytest_sessionfinish():
    if "PYTEST_XDIST_WORKER" not in os.environ:
        for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_STATE_HOME"):
            shutil.rmtree(os.environ[name], ignore_errors=True)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)  # so that no worker ends alone with one


def pytest_addoption(parser):
    parser.addoption("--regenerate", action="store_true", help="Write the golden files anew instead of comparing.")


@pytest.fixture(scope="session")
def repository():
    """The repository's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A directory in which digits is prepared and decoded."""
    from llrflow.data.resident import load_split
    from llrflow.data.schema import Data

    data = Data(name="digits", dir=str(tmp_path_factory.mktemp("data")))
    for split in (data.train, data.test):
        load_split(data, split)
    return Path(data.dir)


@pytest.fixture(scope="session")
def fashion_mnist():
    """The directory of Fashion-MNIST's files in Debian's package; the test is skipped where it is missing."""
    directory = Path("/usr/share/datasets/fashion-mnist")
    if not directory.is_dir():
        pytest.skip(f"needs Debian's package dataset-fashion-mnist in {directory}")
    return directory


@pytest.fixture(scope="session")
def tiny(data_dir):
    """A factory of a complete LLR spec as a mapping: digits, a small mlp, one device, a dozen steps."""

    def make():
        return {
            "llrflow": 1,
            "name": "tiny",
            "data": {"name": "digits", "dir": str(data_dir)},
            "model": {"type": "mlp", "widths": [16]},
            "threat": {"norm": "linf", "epsilon": 0.15},
            "objective": {
                "perturbations": {"llr": {"maximize": {"type": "local_linearity"}, "steps": 2}},
                "terms": {
                    "gamma": {"type": "local_linearity", "at": "llr", "weight": 0.2},
                    "slope": {"type": "gradient_inner_product", "at": "llr", "weight": 0.1},
                },
            },
            "optimizer": {"type": "adam", "learning_rate": 0.01},
            "train": {"steps": 12, "batch_size": 64, "log_every": 4},
            "evaluate": {
                "batch_size": 120,
                "cascade": False,
                "checks": {"examples": 0},
                "attacks": {"fgsm": {"type": "fgsm"}, "pgd": {"type": "pgd", "steps": 5}},
            },
            "checkpoint": {"every": 4},
            "devices": {"count": 1},
        }

    return make


@pytest.fixture(scope="session")
def load(tiny):
    """load(overrides) -> Spec: the tiny spec with dotted paths changed, as `--set` does."""
    import llrflow

    return lambda overrides={}: llrflow.load_spec(tiny(), overrides)


@pytest.fixture(scope="session")
def write_spec():
    """write_spec(path, mapping, overrides) -> path: a spec as a YAML file."""
    from llrflow.spec.source import dump_yaml, read_source

    def write(path, mapping, overrides=None):
        path.write_text(dump_yaml(read_source(mapping, overrides or {}).data))
        return path

    return write


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """start(arguments, cwd) -> Popen of a real `llrflow` process that finds nothing in the user's home.

    A third argument is a command to be started in its place.
    """
    environment = {**os.environ, "HOME": str(tmp_path_factory.mktemp("home")), "JAX_PLATFORMS": "cpu"}

    def run(arguments, cwd, program=None):
        command = [*(program or [Path(sys.executable).with_name("llrflow")]), *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=cwd, env=environment, **pipes)

    return run


@pytest.fixture(scope="session")
def llrflow_command(start):
    """llrflow_command(*arguments, cwd) -> (exit code, stdout, stderr) of a finished `llrflow` process."""

    def run(*arguments, cwd):
        process = start(arguments, cwd)
        try:
            out, err = process.communicate(timeout=240)
        finally:
            process.kill()  # after a timeout it would spoil the tests that follow
        return process.returncode, out, err

    return run


# A head that runs nothing, and two nodes, of which one is replaced and killed on demand. In a process of its own: Ray
# forks, which a process with JAX in it should not do.
CLUSTER = """
import sys, time
from pathlib import Path
from ray.cluster_utils import Cluster
memory = {"object_store_memory": 80 * 2**20}
cpus = int(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **memory})
nodes = [cluster.add_node(num_cpus=cpus, **memory) for _ in range(2)]
Path("address.tmp").write_text(cluster.address)
Path("address.tmp").rename("address")
while not Path("end").exists():
    if nodes and Path("kill").exists():
        cluster.add_node(num_cpus=cpus, **memory)
        cluster.remove_node(nodes.pop(), allow_graceful=False)
        nodes.clear()
        Path("killed").touch()
    time.sleep(0.1)
cluster.shutdown()
"""


@pytest.fixture(scope="session")
def wait_for():
    """wait_for(pattern, process) -> the first file that matches a path with wildcards, while the process runs."""

    def wait(path, process, seconds=240):
        end = time.monotonic() + seconds
        while not (found := list(path.parent.glob(path.name))):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end, f"{path} never came"
            time.sleep(0.05)
        return found[0]

    return wait


@pytest.fixture
def cluster(start, tmp_path, wait_for):
    """cluster(cpus) -> (address, folder) of a Ray of two such nodes; `kill` in the folder kills one, once."""
    started, folder = [], tmp_path / "cluster"

    def make(cpus):
        folder.mkdir()
        started.append(start([cpus], folder, [sys.executable, "-c", CLUSTER]))
        return wait_for(folder / "address", started[0]).read_text(), folder

    yield make
    for process in started:
        (folder / "end").touch()
        process.communicate(timeout=60)


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """command(*arguments) -> (exit code, stdout, stderr) of the console script's `main`, in the empty tmp_path/cwd."""
    from llrflow.cli import main

    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setenv("HOME", str(tmp_path))

    def run(*arguments):
        capsys.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def rewrite():
    """rewrite(path, change, **values): a sealed JSON file with change(what it holds) and other values of some keys."""
    from llrflow.base.sealed import sealed, unsealed

    def write(path, change=lambda found: found, **values):
        path.write_bytes(sealed({**change(unsealed(path.read_bytes(), path.name)), **values}, path.name))

    return write


@pytest.fixture(scope="session")
def as_trained(rewrite):
    """as_trained(folder, text): the folder of a run as if it had stored that spec.yaml."""
    from llrflow.base.files import sha256_file
    from llrflow.spec.load import load_spec
    from llrflow.spec.resolve import spec_hash

    def write(folder, text):
        spec = folder / "spec.yaml"
        spec.write_text(text)
        rewrite(folder / "run.json", spec_sha256=sha256_file(spec), stored_hash=spec_hash(load_spec(spec)))

    return write


@pytest.fixture(scope="session")
def numbers_of():
    """numbers_of(folder) -> what a run must reproduce exactly: its metrics as bytes, its evaluation without times."""

    def read(folder):
        (path,) = (folder / "evaluation").glob("*.json")
        evaluation = json.loads(path.read_text())
        del evaluation["started"], evaluation["sha256"]
        for attack in evaluation["attacks"].values():
            del attack["seconds"]
        return (folder / "metrics.jsonl").read_bytes(), path.name, evaluation

    return read


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
