"""Specs that were changed at random, as text and as data, and random `--set`: a spec, or one error that has a place."""

import copy
import random

import pytest

from llrflow.base.errors import InputError
from llrflow.spec.load import load_spec
from llrflow.spec.resolve import spec_hash
from llrflow.spec.source import dump_yaml, scalar

SPECS = ("quickstart", "digits_sweep", "digits_population", "robust_overfitting", "digits_methods")
VALUES = (
    None, True, -1, 0, 1e308, 1e-320, float("nan"), float("inf"), 10**400, -(10**309), 2**63, "", " ", "8/0", "1/0/1",
    "1e999999999", "nominal", "worst_case", "\0", "\ud800", "[/x]", "\x1b[31m", "a" * 5000, "..", "~", "$HOME", [], {},
    [[]], {"type": None}, {"type": []}, {"type": "pgd"}, {"type": "piecewise", "pieces": {0: 1, "0": 2}},
    {"type": "piecewise", "pieces": {"5%": 1}}, [1, "a"], {"extends": "/dev/null"}, ["x.py"], {0: 1}, "2 epochs", "5%",
)  # fmt: skip
"""What stands in for another value: of other types, at the ends of what a number can be, hostile text."""


def paths(data, path=()):
    """Every path in nested data."""
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, item in items:
        yield from paths(item, (*path, key))


def changed(rng, data):
    """The data with one to three values replaced, deleted, renamed or put elsewhere."""
    data = copy.deepcopy(data)
    for _ in range(rng.randint(1, 3)):
        path = rng.choice([p for p in paths(data) if p])
        parent = data
        for key in path[:-1]:
            parent = parent[key]
        how = rng.randrange(5)
        if how == 0:
            del parent[path[-1]]
        elif how == 1 and isinstance(parent, dict):
            parent[rng.choice(["nominal", "x" * 70, 3, "-1", "type", "at", "ä", "seed"])] = parent.pop(path[-1])
        elif how == 2 and isinstance(parent, dict):
            parent[path[-1]] = copy.deepcopy(rng.choice(list(parent.values())))
        else:
            parent[path[-1]] = copy.deepcopy(rng.choice(VALUES))
        if not data:
            break
    return data


def garbled(rng, text):
    """YAML text with a few characters changed, lines doubled, dropped or moved."""
    for _ in range(rng.randint(1, 4)):
        how, at = rng.randrange(4), rng.randrange(len(text) + 1)
        if how == 0:
            text = text[:at] + rng.choice("\t\0:{}[]&*!|>'\"%@`#-,\n é\x85\ufeff0") + text[at:]
        elif how == 1:
            text = text[:at] + text[at + rng.randint(1, 20) :]
        else:
            lines = text.split("\n")
            line = lines.pop(rng.randrange(len(lines)))
            for _ in range(how - 1):
                lines.insert(rng.randrange(len(lines) + 1), line)
            text = "\n".join(lines)
    return text


def outcome(load, *arguments):
    """A hash, or the message of an error, which is one line with a place before the first colon."""
    try:
        return spec_hash(load(*arguments))
    except InputError as error:
        place, _, rest = str(error).partition(": ")
        assert place.strip() and rest.strip() and "Error" not in place, error
        return str(error)


@pytest.fixture(scope="module")
def specs(repository):
    from llrflow.spec.source import read_source

    found = [read_source(repository / "specs" / f"{name}.yaml").data for name in SPECS]
    for spec in found:
        spec.pop("plugins", None)
    return found


def check(specs, folder, seed, many, sets):
    rng, found = random.Random(seed), set()
    for number in range(many):
        data = changed(rng, rng.choice(specs))
        if number % 2:
            found.add(outcome(load_spec, data))
            continue
        try:
            text = dump_yaml(data)
        except InputError:  # what YAML cannot say is a mapping's alone
            continue
        path = folder / "spec.yaml"
        path.write_bytes(garbled(rng, text).encode("utf-8", "surrogatepass"))
        found.add(outcome(load_spec, path))
    for _ in range(sets):
        data = rng.choice(specs)
        path = ".".join(map(str, rng.choice([p for p in paths(data) if p])))
        path = rng.choice([path, f"{path}.{rng.choice(['type', 'x', '0', '', 'weight'])}", path[:-1], path.upper()])
        value = rng.choice([*VALUES, "{a: [", "'", "1_000", "0x" + "f" * 300, "1" + "0" * 400, "!!int x", "*a"])
        try:
            value = scalar(value) if isinstance(value, str) else value
        except InputError:
            continue
        found.add(outcome(load_spec, data, {path: value}))
    return found


def pieces(*keys):
    return {"type": "piecewise", "pieces": {key: float(i) for i, key in enumerate(keys)}}


WEIGHT = "objective.terms.gamma.weight"
REFUSED = {
    "nominal": (
        {"evaluate.attacks.nominal": {"type": "fgsm"}},
        "evaluate.attacks.nominal",
        "accuracy without an attack",
    ),
    "worst_case": (
        {"evaluate.attacks.worst_case": {"type": "fgsm"}},
        "evaluate.attacks.worst_case",
        "choose another",
    ),
    "union": ({"evaluate.attacks.union": {"type": "fgsm"}}, "evaluate.attacks.union", "choose another"),
    "control": ({"evaluate.attacks.random": {"type": "fgsm"}}, "evaluate.attacks.random", "the noise control"),
    "look": (
        {"checkpoint.best": {"attacks": {"nominal": {"type": "fgsm"}}}},
        "checkpoint.best.attacks.nominal",
        "choose another",
    ),
    "term": (
        {"objective.terms.validation": {"type": "gradient_norm", "weight": 1.0}},
        "terms.validation",
        "every run logs",
    ),
    "two keys": ({WEIGHT: pieces(0, "0")}, WEIGHT, "has 0 and '0', which are one step; delete one of them"),
    "two spellings": ({WEIGHT: pieces(0, 10, "10 steps")}, WEIGHT, "has 10 and '10 steps', which are one step"),
    "400 zeros": ({"threat.epsilon": 10**400}, "--set threat.epsilon", "use a smaller number"),
    "310 digits": ({"train.steps": 10**309}, "--set train.steps", "use a smaller number"),
    "NUL": ({"plugins": ["a\0.py"]}, "plugins", "is no possible name"),
}


@pytest.mark.parametrize(("changes", "where", "says"), REFUSED.values(), ids=REFUSED)
def test_names_of_results_doubled_steps_and_numbers_without_end_are_refused(tiny, changes, where, says):
    with pytest.raises(InputError) as caught:
        load_spec(tiny(), changes)
    message = str(caught.value)
    assert where in message and says in message and "\n" not in message


def test_a_few_hundred(specs, tmp_path):
    found = check(specs, tmp_path, seed=0, many=300, sets=100)
    assert len(found) > 150, "most changes were to end in an error of their own"


@pytest.mark.long
def test_ten_thousand_and_two_thousand_values_that_were_set(specs, tmp_path):
    assert len(check(specs, tmp_path, seed=1, many=10_000, sets=2_000)) > 2_000
