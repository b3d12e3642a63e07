"""A Ray of our own can be reached from this machine alone."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net")

SOCKETS = """
import ipaddress, json, os, sys
from pathlib import Path
import psutil, ray
from ray._private import ray_constants
from llrflow.commands.environment import ray_environment
from llrflow.sweep.running.cluster import ray_at

def address(text):
    words = [bytes.fromhex(text[i : i + 8])[::-1] for i in range(0, len(text), 8)]  # each in the order of the machine
    found = ipaddress.ip_address(b"".join(words))
    return str(getattr(found, "ipv4_mapped", None) or found)

ray_environment()
with ray_at("local", num_cpus=1):
    worker = ray.get(ray.remote(lambda: os.getpid()).remote())
    mine, own = {}, [psutil.Process(), *psutil.Process().children(recursive=True)]
    for process in own:
        for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
            try:
                mine[os.readlink(descriptor)] = process.pid
            except OSError:
                pass
    found = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            place, state, inode = (line.split()[i] for i in (1, 3, 9))
            if state == "0A" and f"socket:[{inode}]" in mine:  # 0A is LISTEN
                found.append((address(place.partition(":")[0]), mine[f"socket:[{inode}]"]))
print(json.dumps({"worker": worker, "found": found, "as before": ray_constants.ENABLE_RAY_CLUSTER}))
"""


def test_a_local_ray_listens_on_loopback_only():
    done = subprocess.run([sys.executable, "-c", SOCKETS], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["as before"]
    assert {place for place, _ in said["found"]} == {"127.0.0.1"}, said
    assert said["worker"] in {pid for _, pid in said["found"]} and len({pid for _, pid in said["found"]}) >= 4, said
