"""The `sweep:` block of a spec."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from llrflow.components.fields import Chosen
from llrflow.components.optimizers import Duration
from llrflow.components.registry import Component, Name, ResultName, make


class ParameterEntry(Component):
    """What every swept parameter has besides its domain."""

    path: str | None = None
    """Dotted path of the value that it sets; default the parameter's name."""

    when: dict[str, Any] = {}
    """Paths and values that the trial must have for the parameter to apply; else the spec's own value stands. The path
    `variant` is the name of the trial's variant."""


class Search(Component):
    """Which combinations of values are tried."""

    type: Literal["grid", "random", "optuna", "hyperopt", "bayesopt", "nevergrad", "bohb"] = "random"
    """`grid`: every combination of listed values. `random`: `trials` draws; a larger sweep begins with the same. The
    others learn: `trials` draws in rounds, each by what the trials of the rounds before came to."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the draws."""

    round: Annotated[int | None, Field(ge=1)] = None
    """Draws in a round of a search that learns, whose trials run side by side; default 4."""

    startup: Annotated[int | None, Field(ge=1)] = None
    """Draws that `optuna` makes at random before it learns; default 10. Others have an argument for it."""

    arguments: dict[str, Any] = {}
    """Further arguments of a search that learns, by the names that they have in its library."""

    @property
    def learns(self) -> bool:
        """Whether what trials come to decides what is tried next."""
        return self.type not in ("grid", "random")


class Guard(Component):
    """Stops a trial whose robustness breaks down: catastrophic overfitting (Wong et al. 2020, arXiv:2001.03994)."""

    share: Annotated[float | None, Field(gt=0, lt=1)] = 0.5
    """Stop where the worst-case accuracy is below this share of its best at an earlier rung, while the accuracy under
    the one-step attack `fgsm` of the rung, or the nominal one where there is none, is not."""

    gamma: Annotated[float | None, Field(gt=1)] = None
    """Stop where the mean linearity error at the first attack is more than so many times its highest at an earlier
    rung."""

    floor: float = Field(default=0.2, ge=0, lt=1)
    """Worst-case accuracy that a trial must have had before it is watched: one that answers every image alike has that
    of chance, and loses it when it begins to learn."""


class Rung(Component):
    """When and how a trial is looked at while it trains: what a scheduler decides by."""

    every: Annotated[Any, Duration()] = "10%"
    """Distance of two looks; the last step always is one. A checkpoint is saved at each."""

    attacks: Annotated[dict[ResultName, Annotated[Any, Chosen("attack")]], Field(min_length=1)] = Field(
        default_factory=lambda: {"pgd": make("attack", {"type": "pgd", "steps": 10})}
    )
    """Named cheap attacks."""

    guard: Guard | None = None
    """Stop trials whose robustness breaks down; off by default."""

    @property
    def gamma(self) -> str:
        """The linearity error that is followed: that at the first attack."""
        return f"gamma.{next(iter(self.attacks))}.mean"


class Resources(Component):
    """What one trial takes of the cluster."""

    cpu: float = Field(default=1.0, ge=0)
    """CPUs; without GPUs also the number of devices of a trial, unless `devices.count` says otherwise."""

    gpu: float = Field(default=0.0, ge=0)
    """GPUs."""

    custom: dict[str, float] = {}
    """Any other resource of the cluster by its name: `{TPU: 4}`."""


class Budget(Component):
    """When to give up."""

    hours: Annotated[float | None, Field(gt=0)] = None
    """Stop after so long; a later `--resume` goes on."""

    failures: Annotated[int | None, Field(ge=0)] = None
    """Stop once more trials than this have failed; default never."""

    retries: int = Field(default=2, ge=0)
    """How often a trial is started again after its worker died. What fails by itself is not tried again."""


Preset = Literal["quick", "standard", "document", "auto_attack"]
"""Attacks that come with llrflow by name."""


class Escalate(Component):
    """Stronger attacks on the best configurations when all trials have ended; the best of these wins."""

    top: int = Field(default=3, ge=1)
    """Configurations, best by the metric at the last rung."""

    attacks: Preset = "auto_attack"
    """The preset; they are ranked by the worst-case accuracy that it leaves."""


class Mlflow(Component):
    """MLflow: a run for each run folder."""

    tracking_uri: str | None = None
    """Where, such as `sqlite:///mlflow.db` or `http://HOST:5000`; default MLFLOW_TRACKING_URI, or MLflow's own choice.
    Credentials belong in the environment: this is written to the folder."""

    experiment: str | None = None
    """Name of the experiment, made where there is none; default the spec's name."""

    tags: dict[str, str] = {}
    """Of every run."""


class Wandb(Component):
    """Weights & Biases: a run for each run folder, of its name. WANDB_API_KEY is taken from the environment."""

    project: str | None = None
    """Default the spec's name."""

    entity: str | None = None
    """User or team; default the account's."""

    group: str | None = None
    """What its runs are grouped by; default the name of the sweep's folder, or of the run's."""

    mode: Literal["online", "offline"] | None = None
    """`offline` writes `wandb/` in the folder, for `wandb sync`; default WANDB_MODE, or online."""


class TensorBoard(Component):
    """TensorBoard: looks and swept parameters in `tensorboard/` of the sweep's folder."""


class RunTrackers(Component):
    """Experiment trackers; `{}` takes a tracker with its defaults."""

    mlflow: Mlflow | None = None
    """MLflow; needs the extra `mlflow`."""

    wandb: Wandb | None = None
    """Weights & Biases; needs the extra `wandb`."""


class Trackers(RunTrackers):
    """Experiment trackers that are shown the trials; `{}` takes a tracker with its defaults."""

    tensorboard: TensorBoard | None = None
    """TensorBoard."""


class Sweep(Component):
    """Many runs of this spec with other values: `llrflow sweep`."""

    variants: dict[Name, str | dict[str, Any]] = {}
    """Methods to compare, by name. Each is the path of a spec, whose method is put on this one as by `--on`, or a
    mapping of changes to this spec; `extends` among them names such a path. All have every seed and parameter."""

    parameters: dict[str, Annotated[Any, Chosen("domain", ParameterEntry)]] = {}
    """What is varied, by the path of its value in the spec, or by a name and with `path:`."""

    search: Search = Search()
    """Grid, random, or by what earlier trials came to."""

    trials: Annotated[int | None, Field(ge=1)] = None
    """Draws of a search that is no grid."""

    seeds: int = Field(default=1, ge=1)
    """Runs of each configuration, with the seeds `seed`, `seed` + 1, ...; they are compared by their mean."""

    scheduler: Annotated[Any, Chosen("scheduler")] = Field(default_factory=lambda: make("scheduler", "fifo"))
    """Who may stop a trial early."""

    metric: str = "worst_case.accuracy"
    """What is compared: a key of the evaluation at a rung, such as nominal.accuracy, attacks.pgd.accuracy,
    gamma.pgd.mean; or `objective`, that of training."""

    mode: Literal["auto", "max", "min"] = "auto"
    """Whether the metric should be high or low; `auto`: accuracies high, everything else low."""

    decide_on: Literal["validation", "test"] = "validation"
    """Images that trials are looked at on: those that `data.validation` holds back, or test images, whose accuracy
    then says too much of the winner."""

    rung: Rung = Rung()
    """Looks at a trial while it trains."""

    escalate: Escalate | None = None
    """Stronger attacks before a configuration wins."""

    concurrency: Annotated[int | None, Field(ge=1)] = None
    """Trials at a time; default as many as the cluster has room for."""

    resources: Resources = Resources()
    """Of one trial."""

    budget: Budget = Budget()
    """Time and failures."""

    trackers: Trackers = Trackers()
    """Where trials are shown besides the sweep's folder."""

    @property
    def changing(self) -> dict[str, Any]:
        """The parameters whose values are chosen, by name; the others follow from them."""
        return {name: domain for name, domain in self.parameters.items() if domain.changes}

    @property
    def metrics(self) -> list[str]:
        """What a look at a rung measures."""
        attacks = [f"attacks.{name}.accuracy" for name in self.rung.attacks]
        gammas = [f"gamma.{name}.mean" for name in ("random", *self.rung.attacks)]
        return ["worst_case.accuracy", "nominal.accuracy", *attacks, *gammas, "objective"]

    @property
    def best_is(self) -> Literal["max", "min"]:
        """`mode` without `auto`."""
        return self.mode if self.mode != "auto" else "max" if self.metric.endswith(".accuracy") else "min"
