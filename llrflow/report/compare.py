"""Two runs side by side: what differs between them, and whether their accuracies differ by more than chance."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llrflow.base.arrays import NotArrays, open_npz
from llrflow.base.errors import CheckpointError
from llrflow.report.read import changed_files
from llrflow.report.tables import attack_list, differing_paths, leaves
from llrflow.runs.folder import RunFolder, label_of
from llrflow.runs.presets import PRESETS, changed_block
from llrflow.runs.records import AttackRecord, EvaluationRecord, Proportion, RunRecord, worst_within
from llrflow.spec.source import read_source


def compare(a: str | Path, b: str | Path) -> dict[str, Any]:
    """The differences of two runs as plain data; where both have a value it stands as {a: value, b: value}.

    spec (without defaults of blocks that one lacks), data and versions by name, where they differ; git; training:
    state, steps and seconds of both; evaluations: those of the last evaluated step of each, with a paired test of each
    accuracy (`mcnemar`) where the verdicts of the same images are on disk, else `unpaired` says why not, and `classes`,
    accuracies by class and who is taken for whom, None where one was made before they were kept; elsewhere: the same
    of evaluations on other data (`data`) than the test split of the spec; missing: the commands that make what is not
    there. Raises CheckpointError when one is not a run folder, or holds an evaluation of another version.
    """
    folders = RunFolder(Path(a)), RunFolder(Path(b))
    runs = folders[0].existing(), folders[1].existing()
    specs = [dict(leaves(read_source(str(folder.spec)).data)) for folder in folders]
    data = [record.data.model_dump() for record in runs]
    training = ("state", "step", "steps", "forward_equivalents", "seconds", "devices")
    made = [folder.last_evaluations() for folder in folders]
    return {
        "a": str(a),
        "b": str(b),
        "spec": {path: _sides(path, specs) for path in differing_paths(specs, runs)},
        "data": differences(*data),
        "versions": differences(*(run.versions for run in runs)),
        "git": differences(*({"commit": run.git} for run in runs)),
        "training": {name: {"a": getattr(runs[0], name), "b": getattr(runs[1], name)} for name in training},
        "evaluations": [_evaluation(folders, label, *both) for label, both in _shared(*made)],
        "elsewhere": [
            {"data": a.data and a.data.title, **_evaluation(folders, label, a, b)}
            for label, (a, b) in _shared(*(folder.evaluations_elsewhere() for folder in folders))
        ],
        "missing": [line for i in (0, 1) for line in _missing(folders[i], runs[i], made[i], made[1 - i])],
    }


def _shared(
    a: dict[str, EvaluationRecord], b: dict[str, EvaluationRecord]
) -> list[tuple[str, tuple[EvaluationRecord, EvaluationRecord]]]:
    """What both have, by label."""
    return [(label, (a[label], b[label])) for label in sorted(a.keys() & b)]


def differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{name: {a: value, b: value}} of what is not the same in both; a side that lacks it has no entry."""
    return {
        name: {side: values[name] for side, values in (("a", a), ("b", b)) if name in values}
        for name in dict.fromkeys([*a, *b])
        if name not in a or name not in b or a[name] != b[name]
    }


def mcnemar(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """McNemar's exact test on paired correctness [N]: under the null hypothesis each discordant pair falls either way.

    `only_a` and `only_b` count images that one alone classifies correctly; `p_value` is two-sided (McNemar 1947).
    """
    from scipy.stats import binomtest

    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    p_value = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return {"only_a": only_a, "only_b": only_b, "p_value": p_value}


def correct_images(folder: RunFolder, stem: str, record: EvaluationRecord) -> dict[str, np.ndarray]:
    """Which images [N] are still correct, by the names of `record.shares`; from verdicts on disk.

    Raises CheckpointError where files are missing, or are not those that the certificate `stem` was written from.
    """
    correct = np.zeros(record.n, bool)
    if record.nominal.correct:
        control = ".".join([stem, *list(record.threats)[:1], "random"])
        correct = _read(folder, control, record.n)["tried"] > 0  # the control is run on what is correct
    standing, found = correct, {"nominal": correct}
    for threat, attacks in record.by_threat().items():
        left = correct
        for name, made in attacks.items():
            wrong = _changed(folder, f"{stem}.{name}", made, record.n)
            left = left & ~wrong
            found[name] = left if record.cascade else correct & ~wrong
        standing = standing & left
        if threat:
            found[worst_within(threat)] = left
    found["worst case"] = standing
    for name, share in record.shares.items():
        if int(found[name].sum()) != share.correct:
            got = f"holds verdicts of {name} that are not those of the certificate"
            raise CheckpointError(str(folder.evaluation), got, _again(folder))
    return found


def _changed(folder: RunFolder, stem: str, made: AttackRecord, n: int) -> np.ndarray:
    """Images that an attack, or any of its stages, changed."""
    wrong = np.zeros(n, bool)
    for part, stage in made.stages.items() if made.stages else [("", made)]:
        if stage.attacked:  # else nothing was written
            wrong |= _read(folder, f"{stem}.{part}" if part else stem, n)["wrong"]
    return wrong


def _read(folder: RunFolder, stem: str, n: int) -> dict[str, np.ndarray]:
    path = folder.evaluation / f"{stem}.npz"
    try:
        with open_npz(path) as stored:
            arrays = {name: stored[name] for name in ("tried", "wrong")}
    except NotArrays:
        raise CheckpointError(str(path), "is missing or damaged", _again(folder)) from None
    shapes = {array.shape for array in arrays.values()}
    if shapes != {(n,)}:
        raise CheckpointError(str(path), f"has {sorted(shapes)[0]} images, not {n}", _again(folder))
    return arrays


def _evaluation(
    folders: tuple[RunFolder, RunFolder], label: str, a: EvaluationRecord, b: EvaluationRecord
) -> dict[str, Any]:
    """One evaluation that both have."""
    tests: dict[str, Any] = {}
    unpaired = None
    if a.ids_sha256 != b.ids_sha256:
        unpaired = "they were evaluated on different test images"
    else:
        try:
            right = [
                correct_images(folder, f"{record.checkpoint}{label}", record)
                for folder, record in zip(folders, (a, b), strict=True)
            ]
            tests = {name: mcnemar(right[0][name], right[1][name]) for name in right[0] if name in right[1]}
            if a.attacked_within != b.attacked_within:
                unpaired, tests = "they were attacked under different threat models", {"nominal": tests["nominal"]}
            elif (a.cascade, attack_list(a)) != (b.cascade, attack_list(b)):
                tests = {name: test for name, test in tests.items() if not name.endswith("worst case")}
                unpaired = "of the worst cases, which are of different attacks"
        except CheckpointError as error:
            unpaired = str(error)
    shares = a.shares, b.shares
    results = {
        name: {
            **{side: _short(share) for side, share in _sides(name, shares).items()},
            **({"mcnemar": tests[name]} if name in tests else {}),
        }
        for name in dict.fromkeys([*shares[0], *shares[1]])
    }
    results["worst case"] = results.pop("worst case")  # last, also where B has attacks that A lacks
    settings = differences(*({name: dict(made.attack) for name, made in r.attacks.items()} for r in (a, b)))
    gammas = [{name: values.mean for name, values in record.gamma.items()} for record in (a, b)]
    return {
        "label": label,
        "n": {"a": a.n, "b": b.n},
        "images": {"a": a.described, "b": b.described},
        "threat": {"a": a.within, "b": b.within},
        "masked": {"a": [flag.name for flag in a.fired], "b": [flag.name for flag in b.fired]},
        "results": results,
        "unpaired": unpaired,
        "classes": _classes(a, b),
        "attacks": {name: both for name, both in settings.items() if len(both) == 2},
        "gamma": {name: _sides(name, gammas) for name in dict.fromkeys([*gammas[0], *gammas[1]])},
    }


def _classes(a: EvaluationRecord, b: EvaluationRecord) -> dict[str, Any] | None:
    """Accuracy by class, and whom the worst case takes for whom, the most images first; None unless both say it."""
    if a.classes is None or b.classes is None or a.classes.names != b.classes.names:
        return None
    both, names = (a.classes, b.classes), a.classes.names
    situations = ("nominal", "worst case")
    accuracy = {
        name: {s: {side: made.accuracy[s][at] for side, made in zip("ab", both, strict=True)} for s in situations}
        for at, name in enumerate(names)
    }
    wrong = [made.mistaken("worst case") for made in both]
    pairs = sorted(dict.fromkeys([*wrong[0], *wrong[1]]), key=lambda pair: -max(side.get(pair, 0) for side in wrong))
    taken = [
        {
            "class": names[true],
            "taken_for": a.classes.name_of(other),
            **{side: counts.get((true, other), 0) for side, counts in zip("ab", wrong, strict=True)},
        }
        for true, other in pairs
    ]
    return {"accuracy": accuracy, "taken": taken}


def _short(share: Proportion) -> dict[str, Any]:
    cost = {"queries": share.queries, "seconds": share.seconds} if isinstance(share, AttackRecord) else {}
    return {"accuracy": share.accuracy, "interval": list(share.interval), **cost}


def _sides(name: str, both: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {side: values[name] for side, values in zip("ab", both, strict=True) if name in values}


def _missing(
    folder: RunFolder, run: RunRecord, here: dict[str, EvaluationRecord], there: dict[str, EvaluationRecord]
) -> Iterator[str]:
    yield from changed_files(folder.path, run)
    late = {record.checkpoint for record in here.values()} - {run.step}
    if late:
        yield f"{folder.path} was evaluated at step {max(late)} of {run.step}: {_again(folder)}"
    if "" not in here and run.state in ("finished", "trained"):
        yield f"{folder.path} has no evaluation of step {run.step}: {_again(folder)}"
    elif "" not in here:
        where = f"{folder.path} is {run.state} at step {run.step} of {run.steps}"
        yield f"{where}: llrflow run {folder.spec} --out {folder.path}"
    for label in sorted(there.keys() - here - {""}):
        lacking = f"{folder.path} has no evaluation {label} ({', '.join(there[label].attacks)})"
        drawn = there[label].n if there[label].subset else None
        known = {label_of(changed_block(name, drawn)): f" --attacks {name}" for name in PRESETS}
        if drawn:
            known[label_of(changed_block(None, drawn))] = ""
        stop = f" --stop-after {drawn}" if drawn else ""
        yield f"{lacking}: {_again(folder)}{known.get(label, ' --attacks FILE-WITH-THESE.yaml')}{stop}"


def _again(folder: RunFolder) -> str:
    return f"llrflow evaluate {folder.path}"
