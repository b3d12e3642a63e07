"""Bad input gets one line that says where, what came and what to do; exit code 2; nothing is written."""

import re
import time
from pathlib import Path

import pytest

ELLE = str(Path(__file__).parents[2] / "plugins" / "elle" / "elle.py")
PGD = {"maximize": {"type": "cross_entropy"}, "steps": 2}
COSINE = {"type": "cosine_decay_schedule", "init_value": 0.1, "decay_steps": 0}


def ramp(start, end, steps):
    return {"type": "linear_schedule", "init_value": start, "end_value": end, "transition_steps": steps}


# name: (changes of the tiny spec, what the message holds in this order: path, value, fix; a regex each)
SPECS = {
    "unknown key": ({"train.batchsize": 8}, [r"train\.batchsize", "8", "did you mean 'batch_size'"]),
    "unknown block": ({"optimiser": {"type": "sgd"}}, ["optimiser", "did you mean 'optimizer'"]),
    "text for a number": ({"train.batch_size": "many"}, [r"train\.batch_size = 'many'", "integer"]),
    "underscores": ({"train.batch_size": "1_000"}, [r"train\.batch_size = '1_000'", "without underscores"]),
    "underscores in a fraction": ({"threat.epsilon": "0.0_1"}, [r"threat\.epsilon = '0\.0_1'", "without underscores"]),
    "a variable": ({"data.dir": "$HOME/data"}, [r"data\.dir = '\$HOME/data'", "variable", "write ~"]),
    "number for a text": ({"name": 7}, ["name = 7", "string"]),
    "mapping missing": ({"threat": 0.1}, ["threat", "mapping"]),
    "epsilon 0": ({"threat.epsilon": 0}, [r"threat\.epsilon = 0", "must be > 0"]),
    "epsilon -1": ({"threat.epsilon": -1}, [r"threat\.epsilon = -1", "must be > 0"]),
    "epsilon 8/0": ({"threat.epsilon": "8/0"}, [r"threat\.epsilon = '8/0'", "zero", "such as 8/255"]),
    "epsilon 8": ({"threat.epsilon": 8}, [r"threat\.epsilon = 8", "pixel range", "write 8/255"]),
    "epsilon 8 of a perturbation": (
        {"objective.perturbations.llr.epsilon": 8},
        [r"objective\.perturbations\.llr\.epsilon = 8", "pixel range", "write 8/255"],
    ),
    "perturbation named like a random stream": (
        {"objective.perturbations.augment": PGD, "objective.terms.gamma.at": "augment"},
        [r"objective\.perturbations\.augment", "another random stream", "rename it"],
    ),
    "target": (
        {"objective.terms.gamma": {"type": "margin", "at": "llr", "target": "rnd"}},
        [r"objective\.terms\.gamma\.target = 'rnd' is no target", "rank", "least_likely"],
    ),
    "epsilon as a word": ({"threat.epsilon": "big"}, [r"threat\.epsilon = 'big'", "not a number", "such as 8/255"]),
    "epsilon with a schedule": (
        {"threat.epsilon": COSINE},
        [r"threat\.epsilon", "cannot follow a schedule", "one number"],
    ),
    "batch over devices": (
        {"train.batch_size": 63, "devices.count": 2},
        [r"train\.batch_size = 63 does not divide over 2 devices", "try 64"],
    ),
    "batch over examples": ({"train.batch_size": 2000}, [r"train\.batch_size", "2000", "1437", "use at most 1437"]),
    "dataset": ({"data.name": "kmnist"}, [r"data\.name", "'kmnist' is not prepared", "llrflow data import kmnist"]),
    "train split": ({"data.train": "trian"}, [r"data\.train", "no split 'trian'", "did you mean 'train'"]),
    "test split": ({"data.test": "validation"}, [r"data\.test", "no split 'validation'", "choose from test, train"]),
    "unknown perturbation": (
        {"objective.terms.gamma.at": "lrl"},
        [r"objective\.terms\.gamma\.at = 'lrl'", "not a perturbation", "did you mean 'llr'"],
    ),
    "unused perturbation": (
        {"objective.perturbations.pgd": PGD},
        [r"objective\.perturbations\.pgd", "used by no term", "or delete it"],
    ),
    "perturbation needed": (
        {"objective.terms.extra": {"type": "local_linearity"}},
        [r"objective\.terms\.extra", "local_linearity", "evaluated at a perturbation and has none", r"llr"],
    ),
    "unknown model": ({"model": {"type": "cnm"}}, [r"model\.type = 'cnm'", "not a known model", "did you mean 'cnn'"]),
    "attack without type": (
        {"evaluate.attacks.new": {"steps": 2}},
        [r"evaluate\.attacks\.new", "no `type`", "apgd_ce, .*fgsm, .*pgd, "],
    ),
    "unknown term": ({"objective.terms.gamma": {"type": "local_linarity"}}, ["not a known term", "'local_linearity'"]),
    "steps and epochs": ({"train.epochs": 2}, ["train has both `epochs` and `steps`", "exactly one"]),
    "no length": ({"train.steps": None}, ["train has neither `epochs` nor `steps`", "exactly one"]),
    "channels": ({"model.mean": [0.1, 0.2]}, [r"model\.mean has 2 values for 1 channels", "give 1 or 1"]),
    "optimizer argument": (
        {"optimizer.learning_rat": 0.1},
        [r"optimizer\.learning_rat", "not a field of optimizer adam", "did you mean 'learning_rate'"],
    ),
    "no learning rate": ({"optimizer": {"type": "sgd"}}, [r"optimizer\.learning_rate is missing", "add it"]),
    "attack argument": (
        {"evaluate.attacks.pgd.step_size": 0.1},
        [r"evaluate\.attacks\.pgd\.step_size", "did you mean 'steps?'"],
    ),
    "fgsm with steps": ({"evaluate.attacks.fgsm.steps": 2}, [r"evaluate\.attacks\.fgsm\.steps = 2", "1"]),
    "negative seed": ({"seed": -1}, ["seed = -1", "greater than or equal to 0"]),
    "name as a path": ({"name": "../up"}, [r"name = '\.\./up'", "pattern"]),
    "term name as a path": ({"objective.terms": {"a/b": {"type": "margin"}}}, [r"objective\.terms\.a/b", "pattern"]),
    "future format": ({"llrflow": 2}, ["llrflow = 2", "1"]),
    "duration": ({"checkpoint.every": "often"}, [r"checkpoint\.every = 'often'", "not a duration", "5%"]),
    "schedule without steps": (
        {"optimizer.learning_rate": COSINE},
        [r"optimizer\.learning_rate", "positive decay_steps"],
    ),
    "ema of nothing": ({"evaluate.parameters": "ema"}, [r"evaluate\.parameters = 'ema'", "set train.ema"]),
    "stride for each layer": (
        {"model": {"type": "cnn", "strides": [1]}},
        [r"model\.strides = \[1\]", "needs 2 values"],
    ),
    "missing plugin": ({"plugins": ["absent.py"]}, ["plugins", r"absent\.py", "relative to the spec"]),
    "missing module": (
        {"plugins": ["no_such_module_here"]},
        ["no_such_module_here", "failed to import", "correct its name"],
    ),
    "plugin twice": ({"plugins": ["json", "json"]}, ["plugins: json is listed twice", "delete one"]),
    "plugins of one name": (
        {"plugins": [ELLE, "elle"]},
        [r"plugins: elle and .*elle\.py are both called .elle.", "rename"],
    ),
    "plugin twice, spelled differently": (
        {"plugins": [ELLE, str(Path(ELLE).parent / ".." / "elle" / "elle.py")]},
        [r"plugins: .*elle\.py is listed twice", "delete one"],
    ),
    "weight schedule beyond the end": (
        {"objective.terms.gamma.weight": ramp(0, 1, 13)},
        [r"objective\.terms\.gamma\.weight follows a schedule of 13 steps, training has 12", "or train longer"],
    ),
    "radius schedule beyond the end": (
        {"objective.perturbations.llr.epsilon": ramp(0, 0.1, "1 epoch")},
        [r"objective\.perturbations\.llr\.epsilon follows a schedule of 22 steps, training has 12", "shorten it"],
    ),
    "negative weight": (
        {"objective.terms.gamma.weight": -0.5},
        [r"objective\.terms\.gamma\.weight takes the value -0\.5", "reward the term", "allow_negative: true"],
    ),
    "negative weight of the loss": (
        {"objective.loss": {"type": "cross_entropy", "weight": -1}},
        [r"objective\.loss\.weight takes the value -1", "reward the term", "allow_negative: true"],
    ),
    "weight scheduled below 0": (
        {"objective.terms.gamma.weight": ramp(1, -1, 10)},
        [r"objective\.terms\.gamma\.weight takes the value -1", "reward the term", "allow_negative: true"],
    ),
    "norm without a radius": (
        {"objective.perturbations.llr.norm": "l2"},
        [
            r"objective\.perturbations\.llr\.norm = 'l2' is not the threat's norm, and has no radius",
            "its own `epsilon`",
        ],
    ),
    "search of a stateful term": (
        {"plugins": [ELLE], "objective.perturbations.llr.maximize": {"type": "elle_a"}},
        [r"objective\.perturbations\.llr\.maximize \(term elle_a\)", "running state", "choose another term"],
    ),
    "attack on a stateful term": (
        {"plugins": [ELLE], "evaluate.attacks.pgd.maximize": {"type": "elle_a"}},
        [r"evaluate\.attacks\.pgd\.maximize \(term elle_a\)", "running state", "choose another term"],
    ),
    "a sweep over many hosts": (
        {"devices.hosts": 2, "sweep": {"parameters": {"seed": {"type": "choice", "values": [1]}}, "trials": 1}},
        [r"devices\.hosts = 2, and a trial of a sweep runs on one host", "delete it", "or delete `sweep`"],
    ),
    "a sweep that would choose by test images": (
        {"sweep": {"parameters": {"train.ema": {"type": "choice", "values": [0.9]}}, "trials": 1}},
        [r"sweep would choose by test images", "`data.validation`, such as 0.1, or say `sweep.decide_on: test`"],
    ),
    "more held back than there is": (
        {"data.validation": 1437},
        [r"data\.validation = 1437 leaves none of 1437 training images", "hold back fewer"],
    ),
    "a class without training images": (
        {"data.validation": 0.99, "train.batch_size": 2},
        [r"data\.validation = 0\.99 leaves class '\d' \(and \d more\) without training images", "hold back fewer"],
    ),
    "a best checkpoint without images to choose by": (
        {"checkpoint.best": {}},
        [r"checkpoint\.best has no images to look at", "`data.validation`, such as 0.1"],
    ),
    "a best checkpoint in a sweep": (
        {
            "checkpoint.best": {},
            "data.validation": 0.1,
            "sweep": {"parameters": {"train.ema": {"type": "choice", "values": [0.9]}}, "trials": 1},
        },
        [r"checkpoint\.best has no place in a sweep", "add it to the winner"],
    ),
    "a best checkpoint by an attack of another norm": (
        {"checkpoint.best": {"attacks": {"cw": "carlini_wagner"}}, "data.validation": 0.1},
        [r"checkpoint\.best\.attacks\.cw \(.*\) cannot look at a run under linf", "choose a cheap attack"],
    ),
    "a share of all images": (
        {"data.validation": 1.0},
        [r"data\.validation = 1\.0 holds back no part", "write a share between 0 and 1, a number"],
    ),
    "parts": ({"train.accumulate": 0}, [r"train\.accumulate = 0 is no number of parts", "or auto"]),
    "parts without a limit": (
        {"train.accumulate": "auto"},
        [r"train\.accumulate = 'auto' needs the memory of a device", "set devices.memory, e.g. to 16 GiB"],
    ),
    "all of a batch from elsewhere": (
        {"data.extra": {"name": "synthetic", "share": 1}},
        [r"data\.extra\.share = 1", "leaves no room for both", "between 0 and 1"],
    ),
    "a frozen layer that is not there": (
        {"train.freeze": ["linaer/*"]},
        [r"train\.freeze", r"'linaer/\*' matches no parameter", r"did you mean 'linear/\*'"],
    ),
    "a start that is no run": (
        {"model.start": {"run": "absent"}},
        [r"model\.start\.run = '.*absent' is not a run folder", "name one that `llrflow run` made"],
    ),
    "hosts that ask for nothing": (
        {"devices.resources.cpu": 0},
        [r"devices\.resources asks for nothing", "`cpu`, `gpu` or `custom`"],
    ),
    "no host": ({"devices.hosts": 0}, [r"devices\.hosts = 0", "greater than or equal to 1"]),
    "target beyond the classes": (
        {"objective.terms.extra": {"type": "margin", "target": 10}},
        [r"objective\.terms\.extra \(term margin\) needs 11 classes, the model has 10", "another term or target"],
    ),
}


@pytest.mark.parametrize("verb", ["run", "validate"])
@pytest.mark.parametrize(("changes", "says"), SPECS.values(), ids=SPECS)
def test_a_wrong_spec(command, tiny, write_spec, tmp_path, changes, says, verb):
    spec = write_spec(tmp_path / "wrong.yaml", tiny(), changes)
    before, began = sorted(tmp_path.rglob("*")), time.monotonic()
    code, out, err = command(verb, spec)
    assert time.monotonic() - began < 30  # a search of the network would take a minute
    assert code == 2 and out == "", err
    place = re.match(rf"error: {re.escape(str(spec))}:(\d+):(\d+): ", err)
    assert place and err.endswith("\n") and err.count("\n") == 1 and "Traceback" not in err, err
    position = place.end()
    for pattern in says:
        found = re.compile(pattern).search(err, position)
        assert found, (pattern, err)
        position = found.start()
    line, column = map(int, place.groups())
    text = spec.read_text().splitlines()[line - 1]
    assert column <= len(text) and (column == 1 or text[column - 2] in " -"), (
        "the place is not where a key or value begins"
    )
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("weight", [-0.5, ramp(1, -1, 12)], ids=["constant", "schedule"])
def test_a_negative_weight_that_is_asked_for(command, tiny, write_spec, tmp_path, weight):
    changes = {"objective.terms.gamma.weight": weight, "objective.terms.gamma.allow_negative": True}
    code, _, err = command("validate", write_spec(tmp_path / "spec.yaml", tiny(), changes))
    assert code == 0, err


TEXTS = {
    "duplicate key": (
        "name: a\nseed: 1\nseed: 2\n",
        r":3:1: the key 'seed' is given twice \(first on line 2\); delete one",
    ),
    "syntax": ("name: [a\nseed: 1\n", r":2:\d+: .*; correct the YAML syntax"),
    "tab": ("train:\n\tsteps: 1\n", r":2:1: .*; indent with spaces, not tabs"),
    "tab before a comment": ("name: a\t# b\n", r":1:8: .*; write spaces in place of the tab"),
    "alias bomb": (
        "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)),
        r":\d+:\d+: more than 10000 values once aliases are expanded; use a smaller spec",
    ),
    "50 MB": (
        "name: big\n# " + "x" * 50_000_000,
        r": has 500000\d\d bytes, more than 1048576; keep data out of the spec",
    ),
    "list": ("- a\n", r":1:1: the top level is not a mapping; write `key: value` entries"),
    "empty": ("", r": is empty; "),
    "only a name": ("llrflow: 1\nname: x\n", r": data is missing; add it"),
}


@pytest.mark.parametrize(("text", "says"), TEXTS.values(), ids=TEXTS)
def test_a_file_that_is_no_spec(command, tmp_path, text, says):
    spec = tmp_path / "wrong.yaml"
    spec.write_text(text)
    before, began = sorted(tmp_path.rglob("*")), time.monotonic()
    code, out, err = command("run", spec)
    assert code == 2 and out == "" and time.monotonic() - began < 30
    assert re.fullmatch(rf"error: {re.escape(str(spec))}{says}.*\n", err), err
    assert sorted(tmp_path.rglob("*")) == before


IMPORT = "from llrflow.components.registry import Component, register\n\n\n"
RAISING = "import json\n\n\ndef read():\n    return json.loads('{')\n\n\nread()\n"
PLUGINS = {
    "raises": ("x = 1\n1 / 0\n", r"failed to import at {file}:2: ZeroDivisionError: division by zero"),
    "raises in a library": (RAISING, r"failed to import at {file}:5: JSONDecodeError"),
    "syntax": ("def broken(:\n", r"failed to import: SyntaxError: invalid syntax \(plugin\.py, line 1\)"),
    "name taken": (
        IMPORT + "@register('term', 'margin')\nclass Mine(Component):\n    pass\n",
        r"the term name 'margin' is already registered by llrflow; choose another name",
    ),
    "unknown kind": (
        IMPORT + "@register('trem', 'mine')\nclass Mine(Component):\n    pass\n",
        r"unknown component kind 'trem'; did you mean 'term'",
    ),
    "reserved field": (
        IMPORT + "@register('term', 'mine')\nclass Mine(Component):\n    weight: float = 1.0\n",
        r"field 'weight' is reserved for every term; rename the field",
    ),
}


@pytest.mark.parametrize(("code", "says"), PLUGINS.values(), ids=PLUGINS)
def test_a_plugin_that_does_not_import(command, tiny, write_spec, tmp_path, code, says):
    (tmp_path / "plugin.py").write_text(code)
    spec = write_spec(tmp_path / "spec.yaml", tiny(), {"plugins": ["plugin.py"]})
    exit_code, out, err = command("run", spec)
    assert exit_code == 2 and out == "" and err.count("\n") == 1 and len(err) < 600
    assert re.match(rf"error: {re.escape(str(spec))}:\d+:\d+: plugin '.*plugin\.py'", err), err
    assert re.search(says.format(file=re.escape(str(tmp_path / "plugin.py"))), err), err
    assert not list((tmp_path / "cwd").iterdir())


COMMANDS = {
    "no such spec": (["run", "absent.yaml"], r"error: absent\.yaml: does not exist; check the path"),
    "set without a value": (["run", "{spec}", "--set", "seed"], r"error: --set: got 'seed'; write path=value.*"),
    "set of an unknown path": (
        ["run", "{spec}", "--set", "train.stepz=4"],
        r"error: --set train\.stepz: train\.stepz = 4 is not a field of train; did you mean 'steps'\?",
    ),
    "set below a number": (
        ["run", "{spec}", "--set", "name.x=4"],
        r"error: --set name\.x: name is no mapping but 'tiny'.*; set name itself",
    ),
    "on no spec": (["run", "{spec}", "--on", "absent.yaml"], r"error: absent\.yaml: does not exist; check the path"),
    "on a spec that does not go with it": (
        ["run", "{spec}", "--on", "{spec}", "--set", "objective.terms.gamma.at=pgd"],
        r"error: --set objective\.terms\.gamma\.at: .* is not a perturbation of this objective; .*",
    ),
    "fresh without a folder": (
        ["run", "{spec}", "--fresh"],
        r"error: --fresh: deletes .*; name the folder with --out DIR",
    ),
    "out is a file": (["run", "{spec}", "--out", "{spec}"], r"error: .*spec\.yaml: .*"),
    "evaluate no run": (
        ["evaluate", "{spec}"],
        r"error: .*spec\.yaml: is not a run folder; name one that `llrflow run` made",
    ),
    "evaluate nothing": (
        ["evaluate", "absent"],
        r"error: absent: is not a run folder; name one that `llrflow run` made",
    ),
    "compare no runs": (
        ["compare", "absent", "{spec}"],
        r"error: absent: is not a run folder; name one that `llrflow run` made",
    ),
    "export no run": (["export", "absent"], r"error: absent: is not a run folder; name one that `llrflow run` made"),
    "unknown kind": (["types", "trem"], r"error: types: 'trem' is not a kind of component; did you mean 'term'\?"),
    "plugin of types": (["types", "--plugin", "absent.py"], r"error: absent\.py: .*no file .*"),
    "init over a file": (["init", "{spec}"], r"error: .*spec\.yaml: exists; choose another name"),
    "init nowhere": (["init", "absent/a.yaml"], r"error: absent/a\.yaml: has no parent folder; create absent first"),
    "init where nothing can be written": (["init", "/proc/a.yaml"], r"error: /proc/a\.yaml: No such file or directory"),
    "init below a file": (["init", "{spec}/a.yaml"], r"error: .*spec\.yaml/a\.yaml: .*"),
    "a name that is too long": (["init", "a" * 300], r"error: a{300}: File name too long"),
    "devices": (
        ["validate", "{spec}", "--set", "devices.count=64"],
        r"error: --set devices\.count: devices\.count = 64 but JAX started with 4 cpu device\(s\); .*",
    ),
    "a block taken away": (
        ["validate", "{spec}", "--set", "train=null"],
        r"error: --set train=null: train is missing; add it",
    ),
    "devices of a plan": (
        ["plan", "{spec}", "--devices", "60"],
        r"error: .*spec\.yaml:\d+:\d+: train\.batch_size = 64 does not divide over 60 devices; try 120",
    ),
}


@pytest.mark.parametrize(("arguments", "says"), COMMANDS.values(), ids=COMMANDS)
def test_a_wrong_command(command, tiny, write_spec, tmp_path, arguments, says):
    spec = write_spec(tmp_path / "spec.yaml", tiny())
    before = spec.read_bytes()
    code, out, err = command(*(argument.format(spec=spec) for argument in arguments))
    assert code == 2 and out == "", err
    assert re.fullmatch(says + r"\n", err), err
    assert spec.read_bytes() == before and not list((tmp_path / "cwd").iterdir())


@pytest.mark.parametrize("position", [0, 3])
def test_verbose_shows_the_traceback(command, tiny, write_spec, tmp_path, position):
    spec = write_spec(tmp_path / "spec.yaml", tiny(), {"seed": -1})
    arguments = ["run", spec, "--json"]
    arguments.insert(position, "--verbose")
    code, _, err = command(*arguments)
    assert code == 2 and "Traceback" in err and "seed = -1" in err.splitlines()[-1]


def test_the_console_script_ends_with_one_line_and_code_2(llrflow_command, tiny, write_spec, tmp_path):
    spec = write_spec(tmp_path / "spec.yaml", tiny(), {"threat.epsilon": 8})
    (tmp_path / "cwd").mkdir()
    code, out, err = llrflow_command("run", spec, cwd=tmp_path / "cwd")
    assert (code, out, err.count("\n")) == (2, "", 1) and not list((tmp_path / "cwd").iterdir())
    code, out, err = llrflow_command("--verbose", "run", spec, cwd=tmp_path / "cwd")
    assert code != 0 and "Traceback" in err and "threat.epsilon = 8" in err.splitlines()[-1]
    assert code == 2
