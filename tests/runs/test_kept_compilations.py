"""What XLA compiled in one process serves the next (llrflow.base.compilations)."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from llrflow.base.compilations import prune

COUNTING = """
import collections, json, sys
from jax import monitoring
seen = collections.Counter()
monitoring.register_event_listener(lambda event, **labels: seen.update([event.rpartition("/")[2]]))
try:
    {work}
finally:
    print(json.dumps(seen))
"""
COMMAND = "from llrflow.cli import main; main(sys.argv[1:])"
ATTACK = """import jax, numpy, llrflow
    llrflow.attack(lambda x: x.reshape(3, 4) @ jax.numpy.eye(4), numpy.full((3, 2, 2, 1), 0.5, "float32"),
                   numpy.zeros(3, int), {"epsilon": 0.1}, {"type": "pgd", "steps": 2}, jax.random.key(0))"""


@pytest.fixture
def counted(tmp_path):
    """counted(work, *arguments, **environment) -> (JAX's events by name, standard error) of a process of its own."""
    chosen = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    mine = {name: value for name, value in os.environ.items() if name not in chosen}

    def count(work, *arguments, **environment):
        script = COUNTING.replace("{work}", work)
        command = [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
        env = {**mine, "HOME": str(tmp_path / "home"), **environment}
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), done.stderr

    return count


@pytest.mark.slow
def test_a_second_evaluation_compiles_nothing(finished, tmp_path, counted):
    attacks, events = tmp_path / "attacks.yaml", []
    attacks.write_text("attacks: {pgd: {type: pgd, steps: 2}}\nchecks: {examples: 0}\n")
    for name in ("first", "second"):
        run = shutil.copytree(finished, tmp_path / name)
        seen, said = counted(COMMAND, "evaluate", run, "--attacks", attacks)
        events.append(seen)
        (record,) = (json.loads(path.read_text()) for path in (run / "evaluation").glob("*-*.json"))
        part = record["attacks"]["pgd"]
        asked = f"{part['seconds']:.1f} s, {part['gradients']:,} gradients"
        assert part["attacked"] <= part["gradients"] <= 2 * part["attacked"] and part["seconds"] > 0
        assert f"attack pgd: {asked}, {part['kills']} of {part['attacked']} broken" in said.splitlines()
    first, second = events
    assert first["cache_misses"] >= 7
    assert "cache_misses" not in second and second["cache_hits"] == second["compile_requests_use_cache"] >= 7


def test_an_attack_on_a_function_keeps_what_it_compiled(tmp_path, counted):
    first, second = counted(ATTACK)[0], counted(ATTACK)[0]
    assert first["cache_misses"] >= 4 and "cache_misses" not in second and second["cache_hits"] >= 4
    (folder,) = (tmp_path / "home/.cache/llrflow/compiled").iterdir()
    assert folder.stat().st_mode & 0o077 == 0


def test_the_users_own_choice_holds(tmp_path, counted):
    off, _ = counted(ATTACK, JAX_ENABLE_COMPILATION_CACHE="false")
    assert "cache_misses" not in off and not (tmp_path / "home").exists()
    (tmp_path / "home").write_text("no folder can be made here")
    assert "cache_misses" not in counted(ATTACK)[0]
    own, _ = counted(ATTACK, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))
    assert own["compile_requests_use_cache"] > 4
    assert (tmp_path / "own").is_dir()


def test_what_was_not_read_for_longest_goes_first(tmp_path):
    for age in range(4):
        file = tmp_path / f"program-{age}"
        file.write_bytes(bytes(100))
        os.utime(file, (1e9 - age, 1e9 - age))
    prune(tmp_path, 250)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["program-0", "program-1"]
