"""Attack the model of a run with llrflow and with foolbox, on the same JAX function; prints one line of JSON each.

python against_foolbox.py strength|throughput RUN [N]; test_foolbox.py runs the first on a small network.
"""

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

import llrflow
from llrflow.attacks.trial_attacks import Subject, TrialAttacks
from llrflow.data.resident import load_split
from llrflow.program.compile import compile_spec
from llrflow.runs.checkpoint import Checkpoints

warnings.simplefilter("ignore")
import foolbox  # noqa: E402

CW = {"search_steps": 6, "steps": 100}


def images_of(model: Any, n: int) -> tuple[np.ndarray, np.ndarray]:
    split = load_split(model.spec.data, model.spec.data.test)
    return split.images[:n].astype(np.float32) / np.float32(255), split.labels[:n]


def theirs(model: Any, attack: Any, x: np.ndarray, y: np.ndarray, epsilon: float | None) -> tuple[Any, Any]:
    """(images, success) of a foolbox attack."""
    wrapped = foolbox.JAXModel(model.logits, bounds=(0, 1))
    raw, _, success = attack(wrapped, jax.numpy.asarray(x), jax.numpy.asarray(y), epsilons=epsilon)
    return np.asarray(raw), np.asarray(success)


def strength(model: Any, n: int) -> None:
    """Robust accuracy, and for minimum-norm attacks the mean distance, of pairs of attacks with the same budget."""
    x, y = images_of(model, n)
    linf, l2 = {"norm": "linf", "epsilon": model.spec.threat.epsilon}, {"norm": "l2", "epsilon": 1.0}
    rows = 10
    fixed = {
        "LinfPGD": (linf, foolbox.attacks.LinfPGD(steps=50)),
        "L2PGD": (l2, foolbox.attacks.L2PGD(steps=50)),
    }
    for name, (threat, attack) in fixed.items():
        _, success = theirs(model, attack, x, y, threat["epsilon"])
        for maximize in ("cross_entropy", "margin"):
            config = {"type": "pgd", "steps": 50, "maximize": maximize}
            ours = llrflow.attack(model.logits, x, y, threat, config, jax.random.key(0))
            found = {"ours": int((~np.asarray(ours.success)).sum()), "foolbox": int((~success).sum()), "n": len(y)}
            print(json.dumps({"attack": name, "maximize": maximize, **found}), flush=True)
    minimum = {
        "LinfDeepFool": (linf, foolbox.attacks.LinfDeepFoolAttack(steps=50, candidates=rows), {"type": "deepfool"}),
        "L2DeepFool": (l2, foolbox.attacks.L2DeepFoolAttack(steps=50, candidates=rows), {"type": "deepfool"}),
        "L2CarliniWagner": (
            l2,
            foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=CW["search_steps"], steps=CW["steps"]),
            {"type": "carlini_wagner", **CW},
        ),
    }
    for name, (threat, attack, config) in minimum.items():
        raw, _ = theirs(model, attack, x, y, None)
        delta = (raw - x).reshape(len(x), -1)
        wrong = np.asarray(model.logits(raw)).argmax(-1) != y
        length = np.abs(delta).max(1) if threat["norm"] == "linf" else np.sqrt((delta**2).sum(1))
        # Where its search finds nothing, foolbox returns a black image, which counts as found if that is misclassified.
        blank = wrong & (raw.reshape(len(raw), -1) == 0).all(1)
        their_distance = np.where(wrong & ~blank, length, np.inf)
        result = llrflow.attack(model.logits, x, y, threat, config, jax.random.key(0))
        distance = np.asarray(result.distance)
        both = np.isfinite(distance) & np.isfinite(their_distance)
        radii = np.quantile(their_distance[both], (0.1, 0.3, 0.5, 0.7, 0.9))
        weaker = max(int((distance > r).sum()) - int((their_distance > r).sum()) for r in radii)
        found = {"ours": float(distance[both].mean()), "foolbox": float(their_distance[both].mean())}
        counts = {"found": int(np.isfinite(distance).sum()), "found by foolbox": int(np.isfinite(their_distance).sum())}
        counts |= {"by foolbox alone": int((np.isfinite(their_distance) & ~np.isfinite(distance)).sum())}
        counts |= {"black images of foolbox left out": int(blank.sum())}
        print(json.dumps({"attack": name, **found, **counts, "weaker by": weaker, "n": len(y)}), flush=True)


def throughput(run: str, model: Any, n: int) -> None:
    """Images a second of PGD-50: on the margin by llrflow, on cross-entropy by foolbox, which has no margin.

    Both in batches of the spec's `evaluate.batch_size`.
    """
    x, y = images_of(model, n)
    epsilon, size = model.spec.threat.epsilon, model.spec.evaluate.batch_size
    program = compile_spec(llrflow.load_spec(f"{run}/spec.yaml", {"devices.count": None}), training=False)
    state = Checkpoints(Path(run) / "checkpoints").restore(program.abstract_state(), model.step)
    variables = program.devices.replicate((state.params, state.model_state))
    key = np.asarray(jax.random.key_data(jax.random.key(0)))
    config = {"type": "pgd", "steps": 50}

    def subject(count: int) -> Subject:
        correct = np.concatenate([np.asarray(model.logits(x[i : i + size])).argmax(-1) == y[i : i + size]
                                  for i in range(0, count, size)])  # fmt: skip
        ids = np.flatnonzero(correct)
        rest = (x[ids], y[ids], key, program.classes, size, ids)
        return Subject(program.network, program.placement, variables, program.spec.threat, *rest)

    trials = TrialAttacks(subject(size))
    trials.attack("pgd", config)
    began = time.perf_counter()
    trials.subject = subject(n)
    robust = int((~trials.attack("pgd", config).arrays["wrong"]).sum())
    ours = time.perf_counter() - began
    attack = foolbox.attacks.LinfPGD(steps=50)
    theirs(model, attack, x[:size], y[:size], epsilon)
    began, standing = time.perf_counter(), 0
    for i in range(0, n, size):
        standing += int((~theirs(model, attack, x[i : i + size], y[i : i + size], epsilon)[1]).sum())
    other = time.perf_counter() - began
    found = {
        "ours": n / ours,
        "foolbox": n / other,
        "ratio": other / ours,
        "robust": robust,
        "robust by foolbox": standing,
    }
    print(json.dumps({"images": n, **{k: round(v, 3) for k, v in found.items()}}))


def main(what: str, run: str, n: str = "10000") -> None:
    model = llrflow.load_model(run)
    strength(model, int(n)) if what == "strength" else throughput(run, model, int(n))


if __name__ == "__main__":
    main(*sys.argv[1:])
