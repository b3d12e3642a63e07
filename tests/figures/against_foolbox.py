"""Attack the model of a run with llrflow and with foolbox, on the same JAX function; prints one line of JSON each.

python against_foolbox.py strength|decisions|throughput RUN [N [STEPS]]; HopSkipJump takes so many STEPS (decisions).
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
        "LInfFMN": (linf, foolbox.attacks.LInfFMNAttack(steps=100), {"type": "fmn"}),
        "L2FMN": (l2, foolbox.attacks.L2FMNAttack(steps=100), {"type": "fmn"}),
        "DDN": (l2, foolbox.attacks.DDNAttack(steps=100), {"type": "ddn"}),
        "L2CarliniWagner": (
            l2,
            foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=CW["search_steps"], steps=CW["steps"]),
            {"type": "carlini_wagner", **CW},
        ),
    }
    for name, (threat, attack, config) in minimum.items():
        raw, _ = theirs(model, attack, x, y, None)
        wrong = np.asarray(model.logits(raw)).argmax(-1) != y
        length = lengths(raw - x, threat["norm"])
        # Where its search finds nothing, foolbox returns a black image, which counts as found if that is misclassified.
        blank = wrong & (raw.reshape(len(raw), -1) == 0).all(1)
        their_distance = np.where(wrong & ~blank, length, np.inf)
        result = llrflow.attack(model.logits, x, y, threat, config, jax.random.key(0))
        distance = np.asarray(result.distance)
        both = np.isfinite(distance) & np.isfinite(their_distance)
        radii = np.quantile(their_distance[both], (0.1, 0.3, 0.5, 0.7, 0.9))
        weaker = max(int((distance > r).sum()) - int((their_distance > r).sum()) for r in radii)
        found = {"ours": float(distance[both].mean()), "foolbox": float(their_distance[both].mean())}
        found["ratio of medians"] = float(np.median(distance[both]) / np.median(their_distance[both]))
        counts = {"found": int(np.isfinite(distance).sum()), "found by foolbox": int(np.isfinite(their_distance).sum())}
        counts |= {"by foolbox alone": int((np.isfinite(their_distance) & ~np.isfinite(distance)).sum())}
        counts |= {"black images of foolbox left out": int(blank.sum())}
        print(json.dumps({"attack": name, **found, **counts, "weaker by": weaker, "n": len(y)}), flush=True)


class HopSkipJump(foolbox.attacks.HopSkipJumpAttack):
    """Theirs, but for one fault: it divides every image's estimate of the normal by the norm over the whole batch."""

    def approximate_gradients(self, *arguments: Any) -> Any:
        found = super().approximate_gradients(*arguments)
        return found / (found.flatten(1).norms.l2(axis=1).reshape((-1, 1, 1, 1)) + 1e-12)


def decisions(model: Any, n: int, steps: int) -> None:
    """Median distance of HopSkipJump in as many queries of each image as theirs takes in so many steps.

    On the images for which noise is misclassified: elsewhere both find nothing, and theirs raises an error.
    """
    x, y = images_of(model, n)
    for norm in ("linf", "l2"):
        threat = {"norm": norm, "epsilon": model.spec.threat.epsilon if norm == "linf" else 1.0}
        few = llrflow.attack(model.logits, x, y, threat, {"type": "hop_skip_jump", "queries": 30}, jax.random.key(1))
        rows = np.flatnonzero(np.isfinite(few.distance) & (few.distance > 0))
        calls, logits = [0], jax.jit(model.logits)

        def counted(images: Any, calls: list[int] = calls, logits: Any = logits) -> Any:
            calls[0] += 1
            return logits(images)

        attack = HopSkipJump(steps=steps, constraint=norm)
        wrapped = foolbox.JAXModel(counted, bounds=(0, 1))
        their = np.asarray(attack(wrapped, *map(jax.numpy.asarray, (x[rows], y[rows])), epsilons=None)[0])
        config = {"type": "hop_skip_jump", "queries": calls[0]}
        ours = llrflow.attack(model.logits, x[rows], y[rows], threat, config, jax.random.key(0))
        found = {"ours": float(np.median(ours.distance)), "foolbox": float(np.median(lengths(their - x[rows], norm)))}
        found["ratio of medians"] = found["ours"] / found["foolbox"]
        print(json.dumps({"attack": f"{norm} HopSkipJump", **found, "queries": calls[0], "n": len(rows)}), flush=True)


def lengths(delta: np.ndarray, norm: str) -> np.ndarray:
    """Norms of perturbations [B,H,W,C], [B]."""
    return np.linalg.norm(delta.reshape(len(delta), -1), np.inf if norm == "linf" else 2, axis=1)


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


def main(what: str, run: str, n: str = "10000", steps: str = "16") -> None:
    model = llrflow.load_model(run)
    if what == "throughput":
        throughput(run, model, int(n))
    elif what == "decisions":
        decisions(model, int(n), int(steps))
    else:
        strength(model, int(n))


if __name__ == "__main__":
    main(*sys.argv[1:])
