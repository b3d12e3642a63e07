"""Variants: methods by seeds by parameters on one experiment, each with a winner of its own."""

import datetime
import json
import re

import pytest

import llrflow
from llrflow.base.errors import SpecError
from llrflow.data.facts import describe
from llrflow.sweep.space.cost import sweep_cost
from llrflow.sweep.space.trials import trials_of
from llrflow.sweep.tracking.outcome import finalists, outcome, write
from llrflow.sweep.tracking.records import EscalatedRecord, TrialRecord
from llrflow.sweep.tracking.storage import Storage

PLUGIN = """
from llrflow.plugin import Component, register

@register("term", "variant_term")
class VariantTerm(Component):
    '''The loss again.'''

    def __call__(self, probe, delta):
        return probe.loss(delta)
"""
KL = {
    "perturbations": {"kl": {"maximize": {"type": "kl_divergence"}, "steps": 1}},
    "terms": {"kl": {"type": "kl_divergence", "at": "kl", "weight": 2.0}},
}


@pytest.fixture(scope="module")
def spec(tiny, write_spec, tmp_path_factory):
    """spec(sweep block) -> the path of the tiny LLR spec with it, beside a folder of methods and a plugin."""
    folder = tmp_path_factory.mktemp("variants")
    methods = folder / "methods"
    methods.mkdir()
    (methods / "term.py").write_text(PLUGIN)
    own = {"threat.epsilon": 0.3, "train": {"steps": 99, "batch_norm": {"terms": "clean"}}}
    write_spec(methods / "llr.yaml", tiny(), own)
    plugged = {"plugins": ["term.py"], "objective": {"terms": {"mine": {"type": "variant_term", "weight": 0.5}}}}
    write_spec(methods / "mine.yaml", plugged)
    return lambda **block: write_spec(folder / "spec.yaml", {**tiny(), "sweep": block}, {"data.validation": 0.2})


BLOCK = {
    "variants": {
        "llr": "methods/llr.yaml",
        "kl": {"extends": {"objective": KL}, "train.batch_size": 32},
        "mine": {"extends": "methods/mine.yaml", "objective": {"terms": {"mine": {"weight": 0.7}}}},
        "plain": {"objective": {"perturbations": None, "terms": None}, "model": {"widths": [8]}},
    },
    "seeds": 2,
    "search": {"type": "grid"},
    "parameters": {
        "lambda": {
            "type": "choice",
            "values": [1, 4],
            "path": "objective.terms.gamma.weight",
            "when": {"variant": "llr"},
        },
        "beta": {"type": "choice", "values": [3, 6], "path": "objective.terms.kl.weight", "when": {"variant": "kl"}},
        "rate": {"type": "choice", "values": [0.01], "path": "optimizer.learning_rate"},
    },
}


def test_every_variant_has_every_seed_and_its_own_values_on_one_experiment(spec):
    base = llrflow.load_spec(spec(**BLOCK))
    found = trials_of(base, describe)
    assert [(t.variant, t.configuration, t.seed) for t in found] == [
        (name, number, seed)
        for number, name in enumerate(["llr", "llr", "kl", "kl", "mine", "plain"])
        for seed in (0, 1)
    ]
    assert [t.parameters for t in found[::2]] == [
        {"lambda": 1, "rate": 0.01},
        {"lambda": 4, "rate": 0.01},
        {"beta": 3, "rate": 0.01},
        {"beta": 6, "rate": 0.01},
        {"rate": 0.01},
        {"rate": 0.01},
    ]
    first = {t.variant: t.spec for t in reversed(found)}
    assert {name: list(made.objective.terms) for name, made in first.items()} == {
        "llr": ["gamma", "slope"],
        "kl": ["kl"],
        "mine": ["mine"],
        "plain": [],
    }
    assert first["llr"].train.batch_norm.terms == "clean" and first["mine"].objective.terms["mine"].weight == 0.7
    assert (first["kl"].train.batch_size, first["plain"].model.widths) == (32, (8,))
    for made in first.values():
        assert made.train.steps == 12 and made.threat == base.threat and made.evaluate == base.evaluate
    assert {t.name.rpartition("-")[0] for t in found} == {f"tiny-{name}" for name in BLOCK["variants"]}
    cost = sweep_cost(base)
    assert (cost["trials"], cost["configurations"]) == (12, 6)


def test_a_sweeps_folder_needs_no_file_of_a_variant(spec, tmp_path):
    from llrflow.spec.source import dump_yaml
    from llrflow.sweep.space.trials import base_of
    from llrflow.sweep.space.variants import inlined

    base = llrflow.load_spec(spec(**BLOCK))
    before = [trial.name for trial in trials_of(base, describe)]
    (tmp_path / "sweep.yaml").write_text(dump_yaml({**base_of(base), "sweep": inlined(base)}))
    assert "methods/llr.yaml" not in (tmp_path / "sweep.yaml").read_text()
    assert [trial.name for trial in trials_of(llrflow.load_spec(tmp_path / "sweep.yaml"), describe)] == before


def test_a_random_search_draws_for_each_variant(spec):
    drawn = {"type": "uniform", "low": 1, "high": 2, "path": "optimizer.learning_rate"}
    block = {"variants": {"a": {}, "b": {"model.widths": [8]}}, "parameters": {"rate": drawn}, "trials": 2}
    found = trials_of(llrflow.load_spec(spec(**block)), describe)
    assert [t.variant for t in found] == ["a", "a", "b", "b"]
    assert [t.parameters for t in found[:2]] == [t.parameters for t in found[2:]]


ONE = {"variants": {"a": "methods/llr.yaml"}}
RATE = {"type": "choice", "values": [1], "path": "optimizer.learning_rate"}
WRONG = {
    "a file that is missing": (
        {"variants": {"a": "methods/lr.yaml"}},
        r"sweep\.variants\.a = 'methods/lr\.yaml' does not exist; check the path",
    ),
    "another evaluation": (
        {"variants": {"a": {"evaluate.attacks.pgd.steps": 7}}},
        r"sweep\.variants\.a has evaluate\.attacks\.pgd\.steps = 7, which is 5 in this spec, and variants share one",
    ),
    "another threat": (
        {"variants": {"a": {"threat": {"epsilon": 0.1}}}},
        r"has threat\.epsilon = 0\.1, which is 0\.15",
    ),
    "other test images": ({"variants": {"a": {"data.test": "test[:9]"}}}, r"has data\.test = 'test\[:9\]'"),
    "a seed of its own": ({"variants": {"a": {"seed": 3}}}, r"sweep\.variants\.a sets seed, which variants share"),
    "no spec": (
        {"variants": {"a": {"objective.terms.gamma.wieght": 3}}},
        r"sweep\.variants\.a objective\.terms\.gamma\.wieght = 3 .* did you mean 'weight'",
    ),
    "a condition on no variant": (
        {**ONE, "parameters": {"rate": {**RATE, "when": {"variant": "b"}}}, "search": {"type": "grid"}},
        r"sweep\.parameters\.rate\.when names 'b', which is no variant; choose from a",
    ),
    "twice the same": (
        {
            **ONE,
            "parameters": {"rate": {**RATE, "when": {"variant": "a"}}, "again": RATE},
            "search": {"type": "grid"},
        },
        r"sets optimizer\.learning_rate, as 'rate' does",
    ),
    "a scheduler": ({**ONE, "scheduler": {"type": "asha"}}, "would stop trials of one variant for those of another"),
    "a search that learns": (
        {**ONE, "parameters": {"rate": RATE}, "trials": 2, "search": {"type": "optuna"}},
        "would learn from trials of all variants together; use grid or random",
    ),
    "nothing": ({"trials": 2}, r"sweep\.parameters varies nothing; add a parameter, or `variants`"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_variants_are_refused_at_their_line(case, spec):
    block, says = WRONG[case]
    path = spec(**block)
    with pytest.raises(SpecError, match=says) as error:
        trials_of(llrflow.load_spec(path), describe)
    assert re.match(rf"{re.escape(str(path))}:\d+:\d+: ", str(error.value)), error.value


def trial(number, variant, configuration, value, seed=0, escalated=None):
    stronger = None if escalated is None else EscalatedRecord(attacks="quick", robust=escalated, masked=[])
    return TrialRecord(
        number=number, configuration=configuration, seed=seed, run=f"run-{number}", variant=variant,
        parameters={"lambda": float(configuration)}, state="finished", step=12, steps=12, rungs=[], value=value,
        nominal=None, robust=None, gamma=None, masked=[], escalated=stronger, seconds={}, error=None, traceback=None,
    )  # fmt: skip


def test_each_variant_has_a_winner_and_a_mean_is_called_one(spec, tmp_path):
    base = llrflow.load_spec(spec(**{**BLOCK, "escalate": {"top": 1, "attacks": "quick"}}))
    values = {("llr", 0): (0.5, 0.3), ("llr", 1): (0.4, 0.44), ("kl", 2): (0.6, 0.7), ("kl", 3): (0.61, 0.65)}
    pairs = [(variant, c, seed, value) for (variant, c), both in values.items() for seed, value in enumerate(both)]
    found = [trial(number, variant, c, value, seed) for number, (variant, c, seed, value) in enumerate(pairs)]

    def record():
        return outcome(base, found, "finished", datetime.datetime.now(datetime.UTC), [])

    made = record()
    assert made.winners == {"llr": 1, "kl": 2} and made.best == 4
    assert [t.number for t in finalists(base.sweep, found)] == [2, 3, 4, 5]
    storage = Storage(tmp_path / "sweep")
    for part in found:
        storage.run(part.run).path.mkdir(parents=True)
        storage.run(part.run).spec.write_text(f"llrflow: 1\nname: {part.run}\n")
    storage.best_of("gone").write_text("of a variant that is no more")
    write(base, storage, made)
    assert {path.name for path in storage.path.glob("best*.yaml")} == {"best.yaml", "best-llr.yaml", "best-kl.yaml"}
    head = storage.best_of("llr").read_text().split("llrflow: 1")[0]
    assert head == (
        "# The best of llr in the sweep tiny: the configuration of trials 2, 3, worst_case.accuracy 42.00% ± 2.83 "
        "at the last rung, mean and standard deviation of 2 seeds; chosen on the validation images.\n"
        "# This is trial 2, of seed 0: 40.00%.\n#   llrflow run best-llr.yaml\n"
    )
    assert "name: run-2" in storage.best_of("llr").read_text() and "name: run-4" in storage.best.read_text()
    header = storage.table.read_text().splitlines()[0].split(",")
    assert header[:4] == ["number", "configuration", "variant", "seed"]
    # Stronger attacks choose within a variant, and leave another alone until they were made on it.
    found[2:4] = [trial(2, "llr", 1, 0.4, 0, escalated=0.2), trial(3, "llr", 1, 0.44, 1, escalated=0.3)]
    made = record()
    assert made.winners == {"llr": 1, "kl": 2}
    assert {c.configuration: c.excluded is None for c in made.configurations} == {0: False, 1: True, 2: True, 3: True}


@pytest.mark.long
def test_methods_by_seeds_by_weights_are_one_command(spec, llrflow_command, tmp_path):
    block = {**BLOCK, "variants": {name: BLOCK["variants"][name] for name in ("llr", "kl", "mine")}}
    path = spec(**block, rung={"every": 12}, concurrency=2)
    code, out, err = llrflow_command("sweep", path, "--out", tmp_path / "out", cwd=tmp_path)
    assert code == 0, err
    record = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert record["state"] == "finished" and len(record["trials"]) == 10
    by_variant = {}
    for one in record["configurations"]:
        values = [record["trials"][number]["value"] for number in one["trials"]]
        assert one["mean"] == pytest.approx(sum(values) / 2) and len(values) == 2
        by_variant.setdefault(one["variant"], []).append((-one["mean"], one["configuration"]))
    assert record["winners"] == {name: min(found)[1] for name, found in by_variant.items()}
    shown = " ".join(out.split())
    for name in by_variant:
        assert f"best of {name}: trials " in shown and (tmp_path / "out" / f"best-{name}.yaml").exists()
    assert "Paired tests" in shown and "mean of 2 seeds" in shown
    best = llrflow.load_spec(tmp_path / "out" / "best-mine.yaml", {"devices.count": 1})
    assert best.objective.terms["mine"].weight == 0.7
    code, table, err = llrflow_command("report", tmp_path / "out", "--table", "latex", cwd=tmp_path)
    assert code == 0, err
    assert r"\pm" in table and table.count("llr (lambda") >= 2 and "over seeds" in table
