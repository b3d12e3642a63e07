"""The files on the page about clusters: of the right syntax, and for the versions that are pinned."""

import json
import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import jsonschema
import pytest
import yaml

from llrflow.spec.sweep_schema import Resources


@pytest.fixture(scope="module")
def blocks(repository):
    """Each embedded file as (language, text), by the name in its first comment."""
    text = (repository / "docs" / "cluster.md").read_text()
    found = {}
    for language, body in re.findall(r"```(yaml|bash|dockerfile)\n(.*?)```", text, re.DOTALL):
        name = next(line[2:] for line in body.splitlines() if line.startswith("# "))
        found[name] = language, body
    return found


def test_nothing_is_missed(blocks):
    assert sorted(language for language, _ in blocks.values()) == ["bash", "dockerfile", "yaml", "yaml", "yaml"]


def test_scripts_are_bash(blocks, tmp_path):
    for name, (language, body) in blocks.items():
        if language == "bash":
            script = tmp_path / name
            script.write_text(body)
            checked = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
            assert checked.returncode == 0 and not checked.stderr, checked.stderr


def test_the_cluster_file_is_what_ray_takes(blocks):
    import ray

    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    cluster = yaml.safe_load(blocks["cluster.yaml"][1])
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, "max_wokers": 1}, schema)


def test_kubernetes_files_name_what_they_use(blocks, repository):
    job = yaml.safe_load(blocks["rayjob.yaml"][1])
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    tpu = yaml.safe_load(blocks["In rayjob.yaml, in place of its workerGroupSpecs"][1])
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"], *tpu["workerGroupSpecs"]]
    assert {tuple(group) for group in groups[1:]}, "there are workers"
    for group in groups:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        assert container["resources"]["limits"] == container["resources"]["requests"]
    pinned = re.search(r"^ray==(.*)$", (repository / "constraints.txt").read_text(), re.MULTILINE)[1]
    assert cluster["rayVersion"] == pinned == version("ray")
    assert f"FROM rayproject/ray:{pinned}-py311-gpu" in blocks["Dockerfile"][1]


def test_resources_of_trials_are_those_of_a_spec(repository):
    text = (repository / "docs" / "cluster.md").read_text()
    rows = re.findall(r"\| `(\{.*?\}+)` \|", text)
    assert len(rows) == 4 and all(Resources.model_validate(yaml.safe_load(row)) for row in rows)


def test_commands_have_the_options_they_are_given(repository):
    """Every `llrflow sweep` of the page is one that the command line takes."""
    from llrflow.commands.sweep import sweep

    text = (repository / "docs" / "cluster.md").read_text()
    known = {option for parameter in sweep.params for option in parameter.opts}
    lines = re.findall(r"llrflow sweep (?:/shared/)?SPEC\.yaml (.*)", text)
    assert len(lines) == 6
    for line in lines:
        assert set(re.findall(r"(?<!-)--[a-z]+", line.split("' --tmux")[0])) <= known, line
