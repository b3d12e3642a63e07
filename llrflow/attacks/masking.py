"""Signs of gradient masking: trials that a robustness claim must survive before its number means anything.

After Athalye, Carlini & Wagner 2018 (arXiv:1802.00420) and Carlini et al. 2019 (arXiv:1902.06705, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from llrflow.attacks.base import Attack
from llrflow.attacks.search import InMemory
from llrflow.attacks.trial_attacks import Subject, TrialAttacks
from llrflow.method.probe import Reference
from llrflow.method.threat import Threat

STEPS, RESTARTS, LONG, QUERIES = 20, 5, 100, 200
"""Of the trials' attacks."""

SHARE = 0.02
"""Share of the examples (and at least two) that must contradict before a comparison counts."""


EXCESS = 0.25
"""How far the linear prediction of PGD's gain may exceed it, as a share of the change of the loss."""
# Only what the gradient promises too much counts. The error in the other direction is that of any confident network:
# its cross-entropy is flat at x and steep further on, |error| / |change| is 1, and masking cannot be told from it.
# Measured: 0.000 on trained digits networks and the tests' honest one, with logits times 1, 10 and 100; up to 0.15 with
# low ripples on the logits; 0.45 and more with high or fast ripples, smoothed steps, capped logits: docs/evaluation.md.


WAYS, WRONG = (0.01, 0.1, 1.0), 0.3
"""Ways, in epsilons, on which the loss must change as its gradient says, and the relative error that is too much."""
# The least error of the three counts. On digits networks at L-inf 0.01, 0.05, 0.15 and 0.3 it is at most 0.08 where the
# gradient is the derivative (linear, tanh, softplus, sigmoid, maxout, deep and narrow, logits times 0.01 to 30), at
# most 0.18 in bfloat16, and at least 0.48 where half of the gradient is stopped, the input quantised or the network
# k-WTA (but 0.03 at 0.01, where the short way seldom crosses a step). One way alone would not do: bfloat16 is all
# rounding on a short one, and on a long one no gradient holds.


class Flag(NamedTuple):
    """One sign of masking, seen or not."""

    name: str
    fired: bool
    measured: dict[str, float]
    meaning: str


def find_flags(
    subject: Subject, made: Sequence[tuple[Attack, np.ndarray]] = (), report: Callable[[int], None] = lambda done: None
) -> list[Flag]:
    """Every sign, seen or not, on the subject's examples; `made` are attacks of an evaluation with whom they changed.

    `report(trials done)` is called between trials.
    """
    trials, flags = TrialAttacks(subject), []
    for done, trial in enumerate(TRIALS):
        report(done)
        flags += trial(trials)
    return [_joined(flag, made) for flag in flags]


def _ascent(steps: int, size: float) -> dict[str, Any]:
    """On the cross-entropy, from the clean image; a single step of epsilon is FGSM."""
    step = {"type": "steepest", "size": size}
    return {"type": "pgd", "maximize": "cross_entropy", "steps": steps, "step": step, "start": "zero", "stop": "never"}


def _margin(steps: int, size: float, restarts: int = 1) -> dict[str, Any]:
    return {"type": "pgd", "steps": steps, "restarts": restarts, "step": {"type": "steepest", "size": size}}


def _steps(trials: TrialAttacks) -> list[Flag]:
    """FGSM against PGD, the loss against the number of steps, its linearity, and the gradients it all rests on."""
    epsilon = float(trials.subject.threat.epsilon)
    single = trials.attack("ascent", _ascent(1, epsilon)).arrays
    short = trials.attack("ascent", _ascent(STEPS // 4, 2.5 * epsilon / (STEPS // 4))).arrays
    found = trials.attack("ascent", _ascent(STEPS, 2.5 * epsilon / STEPS))
    long = found.arrays
    clean = trials.reference(trials.subject.key)
    again = trials.reference(trials.subject.key + np.uint32(1))
    n = len(clean.loss)
    fewer, gains = single["wrong"] & ~long["wrong"], {}
    for name, arrays in (("1 step", single), (f"{STEPS // 4} steps", short), (f"{STEPS} steps", long)):
        gains[name] = float(np.mean(arrays["loss"] - clean.loss))
    lengths = np.abs(clean.gradient).reshape(n, -1).max(axis=1)
    useless = float(np.mean(~np.isfinite(lengths) | (lengths == 0)))
    spread = float(np.max(np.abs(_finite(clean.logits) - _finite(again.logits))))
    excess = _excess(found, clean)
    reached, before = gains[f"{STEPS} steps"], gains[f"{STEPS // 4} steps"]
    # To first order the loss grows by epsilon times the gradient's dual norm; an honest attack finds much of that.
    gains["to first order"] = expected = _expected(trials.subject, np.nan_to_num(clean.gradient))
    flat = not np.isfinite(reached) or reached <= max(0.1 * expected, 1e-9) or reached < 0.9 * before
    return [
        Flag(
            "fgsm_beats_pgd",
            bool(_many(fewer.sum() - (long["wrong"] & ~single["wrong"]).sum(), n)),
            {"accuracy under FGSM": _robust(single), "accuracy under PGD": _robust(long)},
            "one step finds more errors than many: iterative attacks are being misled. Trust none of them; look at the "
            "loss surface (llrflow evaluate RUN --study surface), and for a step or activation that blocks gradients.",
        ),
        Flag(
            "loss_flat",
            bool(flat),
            gains,
            "more steps do not raise the loss: the search sees no slope. Attack another objective (margin, dlr), and "
            "without gradients (square), and check the scale of the logits.",
        ),
        Flag(
            "gradients_vanish",
            useless > 0.01,
            {"share of zero or non-finite input gradients": useless},
            "the cross-entropy has no input gradient: saturated logits or a step function in the model. Divide the "
            "logits before attacking, attack dlr, or approximate the step's derivative (BPDA, Athalye et al. 2018).",
        ),
        Flag(
            "stochastic",
            spread > 0,
            {"largest difference of a logit between two draws": spread},
            "the same image gives different logits: average the gradient over draws (`eot: 20` in every attack).",
        ),
        Flag(
            "gamma_large",
            excess > EXCESS,
            {"mean excess of the linear prediction over mean loss change at PGD": excess},
            "the gradient promises more than is there, so that the loss is far from linear inside the ball: few-step "
            "attacks are unreliable. Use many steps, restarts and multi_targeted, and compare with auto_attack.",
        ),
    ]


def _derivative(trials: TrialAttacks) -> list[Flag]:
    """Whether the loss changes as its gradient says, forth and back along a random direction."""
    subject, clean = trials.subject, trials.reference(trials.subject.key)
    rng = np.random.Generator(np.random.Philox(key=int(subject.key[-1])))
    signs = rng.choice(np.array([-1, 1], np.float32), subject.images.shape)
    lengths = np.asarray(subject.threat.distance(jnp.asarray(signs)))
    way = signs * (float(subject.threat.epsilon) / lengths)[:, None, None, None]
    rounding = 4 * np.finfo(np.float32).eps * np.maximum(np.abs(_finite(clean.logits)).max(axis=1), 1)
    errors = {}
    for length in WAYS:
        forth, back = (np.clip(subject.images + sign * length * way, 0, 1) for sign in (1, -1))
        change = trials.losses(length * way) - trials.losses(-length * way)
        promised = np.sum(((forth - back) * np.nan_to_num(clean.gradient)).reshape(len(change), -1), axis=1)
        known = np.isfinite(change)
        error = np.maximum(np.abs(change - promised) - rounding, 0)[known].sum()
        largest = max(np.abs(change[known]).sum(), np.abs(promised[known]).sum(), 1e-30)
        errors[f"relative error on {length:g} epsilon"] = float(error / largest)
    return [
        Flag(
            "gradient_wrong",
            min(errors.values()) > WRONG,
            errors,
            "the loss does not change as its gradient says, near or far: something stops or replaces the gradient, or "
            "the loss jumps. Differentiate the whole model, approximate what jumps (BPDA, Athalye et al. 2018), and "
            "attack without gradients (square).",
        )
    ]


def _finite(logits: np.ndarray) -> np.ndarray:
    """The logits, 0 where they are not finite, as those of a class that is never predicted."""
    return np.where(np.isfinite(logits), logits, 0)


def _expected(subject: Subject, gradient: np.ndarray) -> float:
    """What the threat allows the loss to grow if it were linear, in nats, on average."""
    radii = jnp.full(len(gradient), subject.threat.epsilon, gradient.dtype)
    gain = subject.threat.geometry.gain(jnp.asarray(gradient), jnp.asarray(subject.images), radii)
    return float(np.mean(np.asarray(gain, np.float64)))


def _excess(found: InMemory, clean: Reference) -> float:
    """mean of max(<delta, grad l(x)> - (l(x + delta) - l(x)), 0) over mean of |l(x + delta) - l(x)|."""
    change = found.arrays["loss"] - clean.loss
    predicted = np.sum((found.delta * np.nan_to_num(clean.gradient)).reshape(len(change), -1), axis=1)
    return float(np.mean(np.maximum(predicted - change, 0)) / max(float(np.mean(np.abs(change))), 1e-12))


def _restarts(trials: TrialAttacks) -> list[Flag]:
    """What restarts add, and what an attack without gradients finds beyond them."""
    size, n = 2.5 * float(trials.subject.threat.epsilon) / STEPS, len(trials.subject.labels)
    found = trials.attack("margin", _margin(STEPS, size))
    once = found.arrays["wrong"].copy()
    often = trials.attack("margin", _margin(STEPS, size, RESTARTS), into=found).arrays["wrong"]
    blind = trials.attack("blind", {"type": "square", "queries": QUERIES}).arrays["wrong"]
    beyond = blind & ~often
    return [
        Flag(
            "restarts_gain",
            bool((often & ~once).sum() > max(2, 0.05 * n)),
            {"accuracy with 1 start": float(1 - once.mean()), f"accuracy with {RESTARTS}": float(1 - often.mean())},
            "restarts find many more errors: the loss is rugged, and one start understates the attack. Raise restarts "
            "until accuracy stops falling.",
        ),
        Flag(
            "black_box_wins",
            bool(_many(beyond.sum(), n)),
            {
                "changed by square alone": float(beyond.mean()),
                f"changed by PGD with {RESTARTS} restarts": float(often.mean()),
            },
            "a search without gradients finds errors that gradients do not: the gradients are masked. Report the "
            "black-box number as an upper bound, and find the operation that masks.",
        ),
    ]


def _without_bound(trials: TrialAttacks) -> list[Flag]:
    """Attacks that may do anything to the image must succeed."""
    threat = trials.subject.threat
    diameter = threat.geometry.diameter(int(np.prod(trials.subject.images.shape[1:])))
    whole = Threat(norm=threat.norm, epsilon=diameter)
    huge = _robust(trials.attack("margin", _margin(STEPS, 2.5 * diameter / STEPS), whole).arrays)
    steady = _robust(trials.attack("margin", _margin(LONG, max(float(threat.epsilon), 0.05 * diameter)), whole).arrays)
    advice = "no distance suffices to change the prediction, which cannot be: the attack is broken, or blind. "
    return [
        Flag(
            "survives_huge_epsilon",
            huge > SHARE,
            {"accuracy when every image in [0,1] is allowed": huge},
            advice + "Check the attack's objective, the pixel range and the model's gradients.",
        ),
        Flag(
            "survives_unbounded_steps",
            steady > SHARE,
            {f"accuracy after {LONG} steps of one size without a bound": steady},
            advice + "Check step size and projection, and attack without gradients (square).",
        ),
    ]


TRIALS: tuple[Callable[[TrialAttacks], list[Flag]], ...] = (_steps, _derivative, _restarts, _without_bound)


def _joined(flag: Flag, made: Sequence[tuple[Attack, np.ndarray]]) -> Flag:
    """The flag, fired as well when the evaluation's own attacks show it."""
    if flag.name != "black_box_wins" or not made:
        return flag
    seen = [wrong for attack, wrong in made if attack.white_box and attack.length >= STEPS]  # weak ones prove nothing
    for attack, wrong in made:
        if attack.white_box or not seen:
            continue
        beyond = wrong & ~np.any(seen, axis=0)
        n, label = max(int(np.any([w for _, w in made], axis=0).sum()), 1), attack.label().removeprefix("attack ")
        measured = {**flag.measured, f"changed in the evaluation by {label} alone": float(beyond.sum())}
        flag = flag._replace(measured=measured, fired=flag.fired or bool(_many(beyond.sum(), n)))
    return flag


def _many(count: Any, n: int) -> bool:
    return count >= max(2, SHARE * n)


def _robust(found: Any) -> float:
    return float(1.0 - found["wrong"].mean())
