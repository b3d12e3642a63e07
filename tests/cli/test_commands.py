"""What the commands print and write when all is well."""

import json
import os
import re
import subprocess
import sys
import time

import jsonschema
import pytest
import yaml

import llrflow
from llrflow.components.registry import KINDS, forget
from llrflow.spec.source import read_source

NAMES = {
    "term": {"cross_entropy", "margin", "local_linearity", "gradient_inner_product", "gradient_norm"},
    "attack": {"fgsm", "pgd"},
    "model": {"mlp", "cnn", "resnet"},
    "dataset": {"digits"},
    "optimizer": {"adam", "sgd", "adamw"},
    "schedule": {"linear_schedule", "cosine_decay_schedule", "piecewise_constant_schedule"},
}


@pytest.fixture
def spec_file(tiny, write_spec, tmp_path):
    return write_spec(tmp_path / "spec.yaml", tiny())


def test_validate_says_what_would_run_and_writes_nothing(command, spec_file, tmp_path):
    code, out, err = command("validate", spec_file, "--set", "train.epochs=2", "--set", "train.steps=null")
    assert (code, err) == (0, "") and out == f"{spec_file} is valid: 44 steps on 1 cpu device(s)\n"
    code, out, _ = command("validate", spec_file, "--json")
    shown = json.loads(out)
    assert code == 0 and len(shown["hash"]) == 12 and shown["spec"]["train"]["steps"] == 12
    assert not list((tmp_path / "cwd").iterdir())


MOONS = """
from llrflow.data.datasets import Digits
from llrflow.plugin import Component, Known, register
@register("dataset", "moons")
class Moons(Component):
    def prepare(self, data_dir):
        raise AssertionError("prepared")
@register("dataset", "otherwise")
class Otherwise(Digits):
    prepare = Moons.prepare
@register("dataset", "told")
class Told(Moons):
    known = property(lambda self: Known((8, 8), 1, 10, {"train": 120, "test": 30}))
"""


def test_validate_and_plan_prepare_no_dataset(command, spec_file, tmp_path):
    there = json.loads(command("validate", spec_file, "--json")[1])
    place = ("--set", f"data.dir={tmp_path / 'data'}", "--set", "data.validation=0.1")
    code, out, err = command("validate", spec_file, *place)
    assert (code, err) == (0, "") and out.splitlines() == [
        f"{spec_file} is valid: 12 steps on 1 cpu device(s)",
        "digits is not prepared yet: its facts are those of the built-in dataset; `run` prepares it",
        "whether data.validation leaves training images of every class is not checked without them",
    ]
    shown = json.loads(command("validate", spec_file, *place[:2], "--json")[1])
    assert (shown["hash"], shown["facts"], len(shown["unchecked"])) == (there["hash"], "built-in", 1)
    assert there["facts"] == "prepared" and there["unchecked"] == []
    planned = json.loads(command("plan", spec_file, *place, "--estimate", "--json")[1])
    assert len(planned["unchecked"]) == 2 and planned["at_least"] == []
    code, out, _ = command("plan", spec_file, *place, "--estimate")
    assert code == 0 and "1,293 images to train on, 144 held back" in out and "digits is not prepared yet" in out
    (tmp_path / "moons.py").write_text(MOONS)
    named = (*place[:2], "--set", f"plugins=[{tmp_path / 'moons.py'}]", "--set", "data.name=moons")
    code, out, err = command("validate", spec_file, *named)
    assert (code, err) == (0, "") and out.splitlines() == [
        f"{spec_file}: its keys, values and plugins are valid",
        f"data.name = 'moons' is not prepared in {tmp_path / 'data'}, and what it holds is seen only then: steps, "
        "shapes, batches and what the network begins with were not checked; `llrflow run` prepares it",
    ]
    out = command("validate", spec_file, *named[:4], "--set", "data.name=told")[1]
    assert "told is not prepared yet: its facts are those of the built-in" in out
    out = command("validate", spec_file, *named[:4], "--set", "data.name=otherwise")[1]
    assert "data.name = 'otherwise' is not prepared" in out
    swept = {"parameters": {"data.name": {"type": "choice", "values": ["digits", "moons"]}}, "search": {"type": "grid"}}
    block = ("--set", f"sweep={json.dumps({**swept, 'decide_on': 'test'})}")
    code, out, err = command("validate", spec_file, *named[:4], *block)
    assert (code, err) == (0, "") and f"{spec_file} is valid: 12 steps" in out, (out, err)
    assert "the sweep was not checked to the end: data.name = 'moons' is not prepared" in out
    for also, says in (
        (block, "batches, the sweep and what"),
        (("--set", "devices.hosts=2"), "batches, hosts and what"),
    ):
        code, out, err = command("validate", spec_file, *named, *also)
        assert (code, err) == (0, "") and says in out
    code, out, err = command("plan", spec_file, *named)
    assert code == 2 and len(err.splitlines()) == 1 and "data.name = 'moons' is not prepared" in err
    assert not (tmp_path / "data").exists() and not list((tmp_path / "cwd").iterdir())
    forget(str(tmp_path / "moons.py"))


def test_on_puts_a_method_on_another_experiment(command, tiny, write_spec, tmp_path):
    quick = {"evaluate.attacks": None, "train.steps": 1, "train.log_every": 1}
    method = write_spec(tmp_path / "method.yaml", tiny(), {"train": {"batch_norm": {"terms": "clean"}, "ema": 0.9}})
    other = {"name": "other", "threat.epsilon": 0.1, "objective.terms.gamma.weight": 7.0, **quick}
    base = write_spec(tmp_path / "base.yaml", tiny(), other)
    by_hand = write_spec(
        tmp_path / "hand.yaml",
        tiny(),
        {**other, "objective.terms.gamma.weight": 0.2, "train.batch_norm": {"terms": "clean"}},
    )
    shown = [json.loads(command("validate", *spec, "--json")[1]) for spec in ((method, "--on", base), (by_hand,))]
    assert shown[0]["spec"] == {**shown[1]["spec"], "name": "other-tiny"} and shown[0]["hash"] == shown[1]["hash"]
    assert command("run", method, "--on", base, "--out", "out")[0] == 0
    origins = json.loads((tmp_path / "cwd" / "out" / "run.json").read_text())["origins"]
    places = {path: origins[path].partition(".yaml")[0].rpartition("/")[2] for path in origins}
    assert places["objective.terms.gamma.weight"] == places["train.batch_norm.terms"] == places["name"] == "method"
    assert places["threat.epsilon"] == places["train.steps"] == places["model.type"] == "base"
    assert json.loads(json.dumps(llrflow.load_spec("out/spec.yaml").model_dump())) == shown[0]["spec"]


def test_types_list_every_component_with_its_fields(command):
    code, out, _ = command("types", "--json")
    listed = json.loads(out)
    assert code == 0 and set(listed) == set(KINDS)
    for kind, names in NAMES.items():
        assert names <= {component["type"] for component in listed[kind]}
    for components in listed.values():
        for component in components:
            if component["origin"].endswith(".py"):
                continue  # a plugin of another test
            assert component["summary"] and component["origin"] in ("llrflow", "optax")
            for field in component["fields"]:
                assert field["type"] and "object at" not in str(field), (component["type"], field)
    pgd = next(component for component in listed["attack"] if component["type"] == "pgd")
    fields = {field["name"]: field for field in pgd["fields"]}
    assert fields["steps"]["default"] == 50 and fields["maximize"]["default"] == "margin"
    code, out, _ = command("types", "term", "--json")
    assert set(json.loads(out)) == {"term"}
    code, out, _ = command("types", "term")
    assert code == 0 and "gradient_norm  (llrflow)" in out and "p: 1 | 2 | inf = 2" in out


def test_the_schema_accepts_the_specs_and_rejects_a_misspelt_key(command, repository, tiny):
    plugins = [part for path in sorted((repository / "plugins").glob("*/*.py")) for part in ("--plugin", path)]
    code, out, _ = command("schema", *plugins)
    schema = json.loads(out)
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    assert code == 0 and schema["$schema"].endswith("2020-12/schema")
    paths = [*sorted((repository / "specs").rglob("*.yaml")), *sorted((repository / "plugins").rglob("*.yaml"))]
    specs = [read_source(path).data for path in paths]
    for spec in [*specs, tiny(), read_source(repository / "llrflow/spec/starter.yaml").data]:
        assert [error.message for error in check.iter_errors(spec)] == []
    for changes in (
        {"trian.steps": 4},
        {"train.stepz": 4},
        {"model.width": [3]},
        {"objective.terms.gamma.wieght": 2},
        {"optimizer.learning_rat": 0.1},
        {"evaluate.attacks.pgd.stepz": 3},
        {"model.type": "cnm"},
        {"train.batch_size": "many"},
    ):
        assert not check.is_valid(read_source(tiny(), changes).data), changes


def test_the_schema_knows_extends(command):
    check = jsonschema.Draft202012Validator(json.loads(command("schema")[1]))
    assert check.is_valid({"extends": "base.yaml", "seed": 3})


def test_init_writes_a_commented_spec_that_validates_and_never_overwrites(command, tmp_path, data_dir):
    code, out, _ = command("init")
    written = tmp_path / "cwd" / "experiment.yaml"
    assert code == 0 and out == "wrote experiment.yaml; next: llrflow run experiment.yaml\n"
    assert written.read_text().count("#") > 10 and yaml.safe_load(written.read_text())["name"]
    code, out, err = command("validate", written, "--set", f"data.dir={data_dir}")
    assert code == 0 and "is valid" in out, err
    before = written.read_bytes()
    assert command("init")[0] == 2 and written.read_bytes() == before


FORWARD_EQUIVALENTS = {
    # LLR-K is 2K + 10 with the clean forward shared; plain training 3; PGD-K training 2K + 3.
    "llr-2": ({}, 14, 2),
    "llr-5": ({"objective.perturbations.llr.steps": 5}, 20, 5),
    "cross-entropy": ({"objective": {"perturbations": None, "terms": None}}, 3, 0),
    "pgd-10": (
        {
            "objective.terms": None,
            "objective.perturbations.llr": {"maximize": {"type": "cross_entropy"}, "steps": 10},
            "objective.loss": {"type": "cross_entropy", "at": "llr"},
        },
        23,
        10,
    ),
}


@pytest.mark.parametrize(("changes", "cost", "steps"), FORWARD_EQUIVALENTS.values(), ids=FORWARD_EQUIVALENTS)
def test_plan_counts_forward_equivalents(command, repository, data_dir, changes, cost, steps):
    sets = {"data.dir": str(data_dir), "devices.count": 1, **changes}
    arguments = [part for path, value in sets.items() for part in ("--set", f"{path}={json.dumps(value)}")]
    code, out, err = command("plan", repository / "specs/quickstart.yaml", "--json", *arguments)
    assert code == 0, err
    plan = json.loads(out)
    assert plan["forward_equivalents_per_step"] == sum(plan["forward_equivalents"].values()) == cost
    assert plan["search_steps"] == steps and plan["steps"] == 60 * 22 and plan["per_device_batch"] == 64
    assert plan["evaluation_forwards"] == 360 * (1 + 2 + 2 * 50 * 2)  # clean, fgsm, pgd
    assert plan["parameters"] == 32 * 9 + 32 + 64 * 288 + 64 + 128 * 1024 + 128 + 10 * 128 + 10
    assert cost * 0.7 < plan["xla_forward_equivalents"] < cost * 1.3


def test_plan_measures_a_step_and_traces_it(command, spec_file, tmp_path):
    code, out, err = command("plan", spec_file, "--measure", "--json", "--peak", 2, "--profile", tmp_path / "trace")
    assert code == 0, err
    plan = json.loads(out)
    found = plan["measured"]
    assert found["images_per_second"] * found["step"] == pytest.approx(plan["batch_size"]) and found["devices"] == 1
    reached = plan["estimated_flops_per_step_and_device"] / found["step"]
    assert (
        found["flops_per_second_and_device"] == pytest.approx(reached) == pytest.approx(found["share_of_peak"] * 2e12)
    )
    assert [*tmp_path.glob("trace/plugins/profile/*/*.xplane.pb")]
    assert found["ratio_min"] <= found["ratio"] <= found["ratio_max"]
    assert found["ratio_min"] <= found["step"] / found["cross_entropy_step"] <= found["ratio_max"]
    assert found["step"] > 0


@pytest.mark.parametrize("option", ["--peak", "--profile"])
def test_options_of_a_measurement_need_one(option, command, spec_file):
    assert command("plan", spec_file, option, 1)[::2] == (
        2,
        f"error: {option}: is about a step that is timed; add --measure\n",
    )


def test_plan_of_a_gradient_penalty_and_of_more_devices(command, spec_file):
    changes = {
        "objective": {"perturbations": None, "terms": {"gamma": None, "slope": None, "flat": {"type": "gradient_norm"}}}
    }
    code, out, err = command(
        "plan", spec_file, "--devices", 4, "--set", f"objective={json.dumps(changes['objective'])}"
    )
    assert code == 0, err
    assert "16 on each of 4 cpu device(s)" in out and "input gradient" in out and "search steps 0" in out


def test_run_prints_json_and_evaluate_repeats_it(command, spec_file, tmp_path):
    code, out, err = command("run", spec_file, "--json", "--out", tmp_path / "run")
    assert code == 0 and err == "", err
    shown = json.loads(out)
    assert shown["run"] == str(tmp_path / "run")
    stored = json.loads((tmp_path / "run/evaluation/12.json").read_text())
    assert {**shown["evaluation"], "sha256": stored["sha256"]} == stored
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["origins"]["threat.epsilon"].startswith(f"{spec_file}:") and record["state"] == "finished"
    attacks = tmp_path / "attacks.yaml"
    attacks.write_text("weak: {type: pgd, steps: 1}\n")
    code, out, err = command("evaluate", tmp_path / "run", "--attacks", attacks, "--checkpoint", 8, "--json")
    again = json.loads(out)["evaluation"]
    assert code == 0 and again["checkpoint"] == 8 and "weak" in again["attacks"], err
    code, out, err = command("run", spec_file, "--out", tmp_path / "run")
    assert code == 0 and "360 test images, linf 0.15, step 12" in out and "worst case" in out
    assert "continuing from step 12 of 12" in err


def test_the_default_folder_is_named_by_the_resolved_spec(command, spec_file, tmp_path):
    small = ["--set", "evaluate.attacks=null", "--set", "train.steps=2"]
    assert command("run", spec_file, *small)[0] == 0
    hash_of_it = json.loads(command("validate", spec_file, *small, "--json")[1])["hash"]
    assert [path.name for path in (tmp_path / "cwd/runs").iterdir()] == [f"tiny-{hash_of_it}"]
    stored = tmp_path / f"cwd/runs/tiny-{hash_of_it}/spec.yaml"
    code, _, err = command("run", stored, "--out", stored.parent)  # the stored spec is the same experiment
    assert code == 0 and "continuing from step 2 of 2" in err
    devices = llrflow.load_spec(stored, {"devices.count": 2, "name": "renamed"})
    assert llrflow.run(devices, stored.parent).record.name == "renamed"  # neither names the experiment


def test_runs_lists_what_a_folder_holds(command, rewrite, spec_file, tmp_path):
    small = ["--set", "evaluate.attacks.pgd=null", "--set", "train.steps=2"]
    assert command("run", spec_file, *small, "--out", tmp_path / "all/done")[0] == 0
    assert command("run", spec_file, *small, "--set", "seed=1", "--out", tmp_path / "all/begun")[0] == 0
    for evaluation in (tmp_path / "all/begun/evaluation").glob("*.json"):
        evaluation.unlink()
    (tmp_path / "all/odd").mkdir()
    (tmp_path / "all/odd/run.json").write_text("{")
    (tmp_path / "all/empty").mkdir()
    rewrite(tmp_path / "all/begun/run.json", state="interrupted")
    code, out, err = command("runs", tmp_path / "all", "--json")
    begun, done, odd = json.loads(out)
    assert code == 0 and err == ""
    assert (odd["state"], odd["name"], odd["nominal"]) == ("unreadable", "odd", None)
    assert "odd/run.json" in odd["error"] and begun["progress"] == 1.0
    assert begun["state"] == "interrupted" and begun["nominal"] is None and begun["attacks"] == {}
    evaluation = json.loads((tmp_path / "all/done/evaluation/2.json").read_text())
    assert done["nominal"] == evaluation["nominal"]["accuracy"] and done["n"] == 360
    assert done["attacks"] == {"fgsm": evaluation["attacks"]["fgsm"]["accuracy"]}
    code, out, _ = command("runs", tmp_path / "all")
    words = [line.split() for line in out.splitlines()]
    assert words[1][:2] == ["begun", "interrupted"] and words[2][:5] == ["done", "finished", "100%", "of", "2"]
    assert (
        odd["error"] in out
        and f"no run in {tmp_path / 'all/empty'}" in out
        and max(map(len, out.splitlines()[:4])) <= 100
    )
    nested = json.loads(command("runs", tmp_path, "--json")[1])  # a level deeper, as a sweep's
    assert [row["path"] for row in nested] == [str(tmp_path / f"all/{name}") for name in ("begun", "done", "odd")]
    assert json.loads(command("runs", tmp_path / "all/done", "--json")[1]) == [done]
    lines = command("runs", tmp_path / "all", "--markdown")[1].splitlines()
    assert lines[0] == "| run | nominal | fgsm | worst case | time |" and len(lines) == 3  # only the finished one
    assert lines[2].startswith(f"| tiny | {done['nominal']:.2%} | ")


def test_runs_of_an_empty_folder(command, tmp_path):
    code, out, err = command("runs", tmp_path)
    assert (code, out) == (
        2,
        "",
    ) and err == f"error: {tmp_path}: holds no run folders; name the folder that holds them\n"


def test_schema_of_the_certificate_describes_every_field(command):
    code, out, _ = command("schema", "--of", "evaluation")
    fields = json.loads(out)["properties"]
    assert code == 0 and {"attacks", "flags", "worst_case", "epsilon", "network_sha256"} <= fields.keys()


QUANTISED = '''
import jax.numpy as jnp
from llrflow.models.classic import MLP
from llrflow.components.registry import register


@register("model", "quantised")
class Quantised(MLP):
    """An mlp that rounds its input where it is evaluated."""

    def body(self, h, classes, batch_statistics):
        """Logits [B,K]."""
        return super().body(h if batch_statistics else jnp.round(4 * h) / 4, classes, batch_statistics)
'''


def test_a_masked_model_is_told_and_its_accuracy_is_a_bound(command, rewrite, tiny, write_spec, tmp_path):
    (tmp_path / "quantised.py").write_text(QUANTISED)
    sets = {
        "plugins": ["quantised.py"],
        "model": None,
        "model.type": "quantised",
        "model.widths": [16],
        "evaluate.attacks": None,
        "evaluate.attacks.fgsm": {"type": "fgsm"},
        "evaluate.checks.examples": 30,
    }
    path, folder = write_spec(tmp_path / "masked.yaml", tiny(), sets), tmp_path / "run"
    code, out, err = command("run", path, "--out", folder)
    assert code == 0, err  # the training went well
    assert "MASKED? gradients_vanish" in out and "<= " in out
    rewrite(folder / "run.json", seconds={"evaluate": 12345.6})
    began = time.monotonic()
    code, out, _ = command("evaluate", folder)
    assert code == 3 and "MASKED? gradients_vanish" in out
    told = re.search(r": evaluate ([\d.]+) s\n$", out)  # this one's time, not the first one's
    assert told and float(told[1]) <= time.monotonic() - began + 0.05
    code, out, _ = command("evaluate", folder, "--json")
    flags = json.loads(out)["evaluation"]["flags"]
    assert code == 3 and flags["gradients_vanish"]["fired"] and len(flags) == 10
    assert "<= " in command("runs", tmp_path)[1]


def test_devices_wait_for_each_other_longer_than_a_machine_sleeps():
    code = "import os; from llrflow.cli import cli; cli.get_command(None, 'run'); print(os.environ['XLA_FLAGS'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "XLA_FLAGS": "--xla_other=1"},
    )
    flags = done.stdout.strip()
    assert flags == "--xla_other=1 --xla_cpu_collective_call_terminate_timeout_seconds=86400"
