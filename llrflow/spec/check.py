"""What single fields cannot know: contradictions between the blocks of a spec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from llrflow.base.validation import first_problem, suggest
from llrflow.components.plugins import called
from llrflow.components.registry import Component
from llrflow.components.traced import components, numbers
from llrflow.data.extra import divided
from llrflow.method.objective import CLEAN
from llrflow.method.term import is_stateful
from llrflow.method.threat import Threat
from llrflow.models.python import Python
from llrflow.spec.schema import Spec
from llrflow.spec.sweep_schema import Sweep

NOT_SWEPT = ("llrflow", "name", "plugins", "seed", "devices", "sweep", "extends", "data.dir")
"""Paths that decide no result, or that a sweep sets itself."""

LOGGED = ("objective", "accuracy", "gradient_norm", "step", "validation")
"""Metrics that every run logs beside those of its terms."""

COLUMNS = (
    "number", "configuration", "variant", "seed", "state", "step", "value", "nominal", "robust", "gamma", "escalated",
    "seconds", "masked", "error", "stopped", "run",
)  # fmt: skip
"""Of trials.csv, beside those of the parameters."""

STREAMS = ("augment", "mix", "terms")
"""Random streams of a step beside those of its perturbations."""


UNUSED, USE = "is used by no term", "set `at:` of a term or of the loss to it, or delete it"


class Problem(NamedTuple):
    """One contradiction."""

    path: str
    """Dotted path of the value to correct."""
    got: str
    fix: str


def contradictions(spec: Spec) -> Iterator[Problem]:
    """Every contradiction, those of the objective first."""
    if (spec.train.epochs is None) == (spec.train.steps is None):
        both = "has both `epochs` and `steps`" if spec.train.epochs else "has neither `epochs` nor `steps`"
        yield Problem("train", both, "give exactly one of them")
    yield from _extra(spec)
    yield from _model(spec)
    yield from _training(spec)
    yield from _mixing(spec)
    yield from _terms(spec)
    yield from _choices(spec)
    yield from _perturbations(spec)
    yield from _components(spec)
    yield from _evaluation(spec)
    yield from _best(spec)
    if not spec.devices.wanted:
        yield Problem("devices.resources", "asks for nothing", "ask for some `cpu`, `gpu` or `custom` resource")
    yield from _sweep(spec)


def _extra(spec: Spec) -> Iterator[Problem]:
    extra, size = spec.data.extra, spec.train.batch_size
    if extra is not None and 0 in (parts := divided(size, extra.share)):
        got = f"= {extra.share:g} of a batch of {size} leaves {parts[0]} training images and {parts[1]} extra ones"
        yield Problem("data.extra.share", got, "change it, or take a larger batch")


def _model(spec: Spec) -> Iterator[Problem]:
    if not isinstance(spec.model, Python):
        return
    if spec.model.plugin not in map(called, spec.plugins):
        got = f"= {spec.model.call!r}, but {spec.model.plugin} is no plugin of this spec"
        yield Problem("model.call", got, "list it in `plugins`")
    if spec.train.precision == "bfloat16":
        got = f"= 'bfloat16', but {spec.model.call} computes in what it was written for"
        yield Problem("train.precision", got, "set it to float32 or tf32, and round in the network itself")


def _training(spec: Spec) -> Iterator[Problem]:
    stateful = [name for name, term in spec.objective.entries().items() if is_stateful(term)]
    if spec.train.accumulate == "auto" and spec.devices.memory is None:
        yield Problem("train.accumulate", "= 'auto' needs the memory of a device", "set devices.memory, e.g. to 16 GiB")
    if spec.train.accumulate != 1 and stateful:
        got = f"= {spec.train.accumulate!r}, but {stateful[0]!r} keeps a running state over whole batches"
        yield Problem("train.accumulate", got, "set it to 1")
    if spec.train.remat == "blocks" and not getattr(spec.model, "has_blocks", False):
        got = f"= 'blocks', but {spec.model.registered_as[1]} is not made of repeated blocks"
        yield Problem("train.remat", got, "set it to none, or choose a published network")
    if spec.train.freeze_statistics and not spec.train.freeze:
        yield Problem("train.freeze_statistics", "= True, but nothing is frozen", "say what in train.freeze")
    yield from _decay(spec.optimizer)


def _decay(optimizer: Any) -> Iterator[Problem]:
    if optimizer.decayed == "all":
        return
    name = optimizer.registered_as[1]
    if getattr(optimizer, "weight_decay", getattr(optimizer, "weight_decay_rate", None)) is None:
        own = next(field for field in ("weight_decay", "weight_decay_rate") if hasattr(optimizer, field))
        yield Problem("optimizer.decayed", f"= 'weights', but {name} decays no weights", f"give it a {own}")
    elif getattr(optimizer, "decays_all_alike", False):
        got = f"= 'weights', but optax's {name} decays all parameters alike"
        yield Problem("optimizer.decayed", got, "delete it, or choose another optimizer")


def _mixing(spec: Spec) -> Iterator[Problem]:
    together = sum(way.p for way in spec.data.mix.values())
    if together > 1 + 1e-9:
        fix = f"give each a `p`, at most {1 / len(spec.data.mix):g} on average"
        yield Problem("data.mix", f"has probabilities that sum to {together:g}, more than 1", fix)
    for where, part in components(spec.objective, ("objective",)):
        if spec.data.mix and getattr(part, "needs_one_label", False):
            got = f"({part.label()}) needs one label per example, and data.mix gives each a share of two"
            target = "its `target`" if getattr(part, "target", None) is not None else "it"
            yield Problem(".".join(where), got, f"leave out {target}, or data.mix")


def _terms(spec: Spec) -> Iterator[Problem]:
    objective = spec.objective
    if "loss" in objective.terms:
        yield Problem("objective.terms.loss", "is the name of the classification loss", "rename the term")
    for name in objective.terms:
        if name in LOGGED:
            yield Problem(f"objective.terms.{name}", "is the name of a metric that every run logs", "rename the term")
    places = objective.places()
    for name, term in objective.entries().items():
        if term.at not in (known := [CLEAN, *objective.perturbations, *objective.choices]):
            got = f"= {term.at!r} is not a perturbation of this objective"
            yield Problem(f"{places[name]}.at", got, suggest(term.at, known))
        elif term.at == CLEAN and getattr(term, "needs_perturbation", False):
            fix = "set `at:` to one of objective.perturbations" + (
                f" ({', '.join(objective.perturbations)})" if objective.perturbations else ", and define it there"
            )
            got = f"({term.registered_as[1]}) is evaluated at a perturbation and has none"
            yield Problem(places[name], got, fix)


def _perturbations(spec: Spec) -> Iterator[Problem]:
    used = {*spec.objective.used(), *(name for choice in spec.objective.choices.values() for name in choice.of)}
    for name, search in spec.objective.perturbations.items():
        path, norm = f"objective.perturbations.{name}", search.norm or spec.threat.norm
        if name == CLEAN or name in STREAMS:
            what = "the unperturbed image" if name == CLEAN else "another random stream"
            yield Problem(path, f"is the name of {what}", "rename it")
        elif name not in used:
            yield Problem(path, UNUSED, USE)
        if norm != spec.threat.norm and search.epsilon is None:
            got = f"= {norm!r} is not the threat's norm, and has no radius"
            yield Problem(f"{path}.norm", got, "give this perturbation its own `epsilon`")
        if isinstance(search.epsilon, float) and search.epsilon > 0:
            try:
                Threat.model_validate({"norm": norm, "epsilon": search.epsilon})
            except ValidationError as error:
                _, got, fix = first_problem(error)
                yield Problem(f"{path}.epsilon", got.removeprefix("epsilon "), fix)


def _choices(spec: Spec) -> Iterator[Problem]:
    known, used = spec.objective.perturbations, spec.objective.used()
    for name, choice in spec.objective.choices.items():
        path = f"objective.choices.{name}"
        if name in (CLEAN, *STREAMS, *known):
            yield Problem(path, "has the name of a perturbation, or of another random stream", "rename it")
        elif name not in used:
            yield Problem(path, UNUSED, USE)
        for member in choice.of:
            if member not in known:
                yield Problem(f"{path}.of", f"has {member!r}, which is no perturbation", suggest(member, known))
                return
        if len(set(choice.of)) < len(choice.of):
            yield Problem(f"{path}.of", "has a perturbation twice", "name each once")
        members = [known[member] for member in choice.of]
        for field in ("maximize", *(("restarts",) if choice.take == "drawn" else ())):
            if any(getattr(member, field) != getattr(members[0], field) for member in members):
                yield Problem(f"{path}.of", f"has searches that differ in `{field}`", "give them the same")


def _components(spec: Spec) -> Iterator[Problem]:
    for where, part in components(spec):
        maximize = getattr(part, "maximize", None)
        if isinstance(maximize, Component) and is_stateful(maximize):
            got = f"({maximize.label()}) keeps a running state, which a search cannot maximise"
            yield Problem(".".join((*where, "maximize")), got, "choose another term")
    for path, value, _ in numbers(spec):
        if isinstance(value, Component) and path.split(".")[0] in ("model", "data"):
            yield Problem(path, "follows a schedule, but is compiled in", "give one number")
        elif isinstance(value, Component) and path.split(".")[0] == "evaluate":
            yield Problem(path, "follows a schedule, but attacks have no training steps", "give one number")


def _evaluation(spec: Spec) -> Iterator[Problem]:
    for under in spec.evaluate.by_threat(spec.threat):
        for name, attack in under.attacks.items():
            place = f"{under.place}.{name}"
            if unknown := attack.unknown(under.threat.norm):
                got, fix = unknown
                own = f"; or give evaluate.threats.{under.name} `attacks` of its own" if under.name else ""
                yield Problem(place, f"({attack.label()}) {got}", fix + own)
            if attack.needs_surrogate and not attack.run:
                yield Problem(place, "names no run to transfer from", "set `run:` to its folder")
    if len(spec.evaluate.threats) == 1:
        yield Problem("evaluate.threats", "has one threat", "give several, or change `threat` itself")
    if spec.evaluate.parameters == "ema" and spec.train.ema is None:
        yield Problem("evaluate.parameters", "= 'ema' but training keeps no moving average", "set train.ema")


def _best(spec: Spec) -> Iterator[Problem]:
    best = spec.checkpoint.best
    if best is None:
        return
    if spec.data.validation is None:
        fix = "hold some back by `data.validation`, such as 0.1, or delete it"
        yield Problem("checkpoint.best", "has no images to look at", fix)
    if spec.sweep is not None:
        fix = "delete it here, and add it to the winner"
        yield Problem("checkpoint.best", "has no place in a sweep, whose rungs look at its trials", fix)
    yield from _looks(spec, "checkpoint.best.attacks", best.attacks)


def _looks(spec: Spec, path: str, attacks: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with attacks that look at a run while it trains."""
    for name, attack in attacks.items():
        if attack.needs_surrogate or spec.threat.norm not in attack.norms:
            got = f"({attack.label()}) cannot look at a run under {spec.threat.norm}"
            yield Problem(f"{path}.{name}", got, "choose a cheap attack on the run itself")


def _rounds(sweep: Sweep) -> Iterator[Problem]:
    """What a search in rounds does not go with, and what goes with no other."""
    search = sweep.search
    if search.startup is not None and search.type != "optuna":
        yield Problem("sweep.search.startup", f"has no effect on {search.type}", "delete it, or use optuna")
    if not search.learns:
        for name in ("round", "arguments"):
            if getattr(search, name):
                yield Problem(f"sweep.search.{name}", f"has no effect on {search.type}", "delete it, or use optuna")
        return
    for name, domain in sweep.parameters.items():
        if domain.crossed:
            got = f"({domain.label()}) has every value with every draw, which is nothing to learn from"
            yield Problem(f"sweep.parameters.{name}", got, "use choice")
        elif search.type == "bayesopt" and domain.registered_as[1] == "choice":
            got = f"({domain.label()}) is no number, and bayesopt learns nothing else"
            yield Problem(f"sweep.parameters.{name}", got, "use another search, such as hyperopt")
    if sweep.scheduler.waits:
        got = f"waits for more trials than a round of {search.type} has"
        yield Problem("sweep.scheduler", f"({sweep.scheduler.label()}) {got}", "use asha")


def _population(sweep: Sweep) -> Iterator[Problem]:
    """What members that take over each other cannot have."""
    label = sweep.scheduler.label()
    if sweep.seeds > 1:
        got = f"= {sweep.seeds}, but members of {label} take over each other's weights: they have one seed"
        yield Problem("sweep.seeds", got, "delete it")
    for name, domain in sweep.parameters.items():
        if domain.when:
            yield Problem(f"sweep.parameters.{name}.when", f"has no place with {label}", "delete it")
    for name, domain in sweep.changing.items():
        kind = domain.registered_as[1]
        if domain.crossed:
            got = f"({domain.label()}) gives every value to every draw, but {label} changes values"
            yield Problem(f"sweep.parameters.{name}", got, "use choice")
        elif sweep.scheduler.registered_as[1] == "pb2" and kind not in ("uniform", "loguniform"):
            got = f"({domain.label()}) has no place in pb2's model of the gains"
            yield Problem(f"sweep.parameters.{name}", got, "use uniform, or the scheduler pbt")
    if not sweep.changing:
        yield Problem("sweep.parameters", f"has nothing that {label} could change", "add a parameter")


def _variants(sweep: Sweep) -> Iterator[Problem]:
    """What methods that are to be compared cannot have, and what does not go with them."""
    for name, variant in sweep.variants.items():
        for key in [] if isinstance(variant, str) else variant:
            if key != "extends" and key.split(".")[0] in NOT_SWEPT:
                yield Problem(f"sweep.variants.{name}", f"sets {key}, which variants share", "set it for all")
    for name, domain in sweep.parameters.items():
        variant = domain.when.get("variant")
        if variant is not None and variant not in tuple(sweep.variants):  # it may be anything
            fix = suggest(variant, sweep.variants) if sweep.variants else "add `variants`, or delete it"
            yield Problem(f"sweep.parameters.{name}.when", f"names {variant!r}, which is no variant", fix)
    if not sweep.variants:
        return
    if sweep.search.learns:
        got = f"= {sweep.search.type!r} would learn from trials of all variants together"
        yield Problem("sweep.search.type", got, "use grid or random")
    if sweep.scheduler.registered_as[1] != "fifo":
        got = f"({sweep.scheduler.label()}) would stop trials of one variant for those of another"
        yield Problem("sweep.scheduler", got, "delete it")


def _sweep(spec: Spec) -> Iterator[Problem]:
    sweep, seen = spec.sweep, {}
    if sweep is None:
        return
    if spec.devices.hosts > 1:
        got = f"= {spec.devices.hosts}, and a trial of a sweep runs on one host"
        yield Problem(
            "devices.hosts", got, "delete it, and run the winner with `--set devices.hosts=`, or delete `sweep`"
        )
    if sweep.decide_on == "validation" and spec.data.validation is None:
        fix = "hold images back by `data.validation`, such as 0.1, or say `sweep.decide_on: test`"
        yield Problem("sweep", "would choose by test images", fix)
    grid = sweep.search.type == "grid"
    for name, domain in sweep.parameters.items():
        place, path = f"sweep.parameters.{name}", domain.path or name
        if path.split(".")[0] in NOT_SWEPT or path in NOT_SWEPT:
            fix = "use `seeds` for several runs of one configuration" if path == "seed" else "choose another path"
            yield Problem(place, f"sets {path}, which cannot be swept", fix)
        if name in COLUMNS and domain.path:
            yield Problem(place, f"= {name!r} is a column of trials.csv", "rename the parameter")
        variant = domain.when.get("variant")
        for other, (taken, theirs) in seen.items():
            if taken == path and (variant == theirs or None in (variant, theirs)):
                yield Problem(place, f"sets {path}, as {other!r} does", "delete one of them")
        seen[name] = path, variant
        if grid and domain.listed() is None:
            yield Problem(place, f"({domain.label()}) has no list of values", "use choice, or `search: {type: random}`")
    if grid and sweep.trials is not None:
        yield Problem("sweep.trials", "has no effect on a grid, which tries everything", "delete it")
    if not (sweep.parameters or sweep.variants):
        yield Problem("sweep.parameters", "varies nothing", "add a parameter, or `variants`")
    if not grid and sweep.trials is None and sweep.parameters:
        yield Problem("sweep", "has no `trials`", "give the number of draws, or `search: {type: grid}`")
    yield from _variants(sweep)
    yield from _rounds(sweep)
    if sweep.scheduler.is_population:
        yield from _population(sweep)
    yield from _looks(spec, "sweep.rung.attacks", sweep.rung.attacks)
    if sweep.rung.guard is not None and sweep.rung.guard.share is None and sweep.rung.guard.gamma is None:
        yield Problem("sweep.rung.guard", "watches nothing", "set `share` or `gamma`, or delete it")
    if sweep.metric not in sweep.metrics:
        got = f"= {sweep.metric!r} is not measured at a rung"
        yield Problem("sweep.metric", got, suggest(sweep.metric, sweep.metrics))
