"""Commands that look without running: `validate`, `plan`, `types`, `schema`, `init`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from llrflow.commands.options import json_option, spec_argument
from llrflow.commands.printing import echo, print_json

NOT_PREPARED = {
    "table": "{name} is not prepared: its facts come from llrflow's table of well-known datasets; `run` needs the data",
    "built-in": "{name} is not prepared yet: its facts are those of the built-in dataset; `run` prepares it",
}


@click.command()
@spec_argument
@json_option
def validate(spec: Path, on: Path | None, changes: dict[str, Any], as_json: bool) -> None:
    """Check SPEC: every key and value, the plugins, the dataset, what the network begins with, and whether batches fit
    the devices.

    Writes nothing: no run folder, and no dataset that is not prepared yet. What cannot be checked without it is said.

    \b
    Example:
      llrflow validate specs/quickstart.yaml --set train.batch_size=63
    """
    from llrflow.data.well_known import Unseen, describe_or_known
    from llrflow.program.compile import compile_spec, undivided
    from llrflow.program.cost import warnings_of
    from llrflow.spec.load import load_spec
    from llrflow.spec.resolve import resolve, spec_hash

    loaded = load_spec(str(spec), changes, on)
    try:
        program, trials = compile_spec(loaded, facts_of=describe_or_known), []
    except Unseen as unseen:
        return _without_facts(spec, loaded, unseen, as_json)
    if loaded.model.start is not None:
        from llrflow.runs.start import start_of

        start_of(program, before=None, trained=False)
    hosts = loaded.devices.hosts
    if loaded.devices.count is not None and loaded.train.batch_size % (together := hosts * len(program.devices)):
        raise undivided(loaded, together)
    warnings, unchecked = warnings_of(program), list(_unchecked(program.facts))
    if loaded.sweep is not None:
        from llrflow.sweep.decisions.check import check_trials
        from llrflow.sweep.space.trials import trials_of

        try:
            trials = trials_of(loaded, describe_or_known)
            check_trials(loaded, trials, describe_or_known)
        except Unseen as unseen:
            unchecked.append(f"the sweep was not checked to the end: {unseen.got}; {unseen.fix}")
    if as_json:
        digest = spec_hash(resolve(loaded, program.facts))
        found = {"hash": digest, "spec": program.spec.model_dump(), "facts": program.facts.source}
        return print_json({**found, "warnings": warnings, "unchecked": unchecked})
    each = f" on each of {hosts} hosts" if hosts > 1 else ""
    devices = f"{len(program.devices)} {program.devices.platform} device(s){each}"
    echo(f"{spec} is valid: {program.steps} steps on {devices}")
    if trials:
        echo(f"its sweep has {len(trials)} trials")
    for warning in warnings:
        echo(f"warning: {warning}")
    for line in unchecked:
        echo(line)
    return None


def _without_facts(spec: Path, loaded: Any, unseen: Any, as_json: bool) -> None:
    """Say how far a spec is valid whose dataset does not say what it holds."""
    also = [*(["hosts"] if loaded.devices.hosts > 1 else []), *(["the sweep"] if loaded.sweep is not None else [])]
    unknown = f"{', '.join(['steps', 'shapes', 'batches', *also])} and what the network begins with were not checked"
    line = f"{unseen.got}: {unknown}; {unseen.fix}"
    if as_json:
        found = {"hash": None, "spec": loaded.model_dump(), "facts": None, "warnings": [], "unchecked": [line]}
        return print_json(found)
    echo(f"{spec}: its keys, values and plugins are valid")
    echo(line)
    return None


def _unchecked(facts: Any) -> Iterator[str]:
    """What is not known of a dataset and its extra images that are not prepared."""
    for one in (facts, facts.extra):
        if one is not None and one.source in NOT_PREPARED:
            yield NOT_PREPARED[one.source].format(name=one.name)
    if facts.held and facts.source != "prepared":
        yield "whether data.validation leaves training images of every class is not checked without them"


@click.command()
@spec_argument
@click.option("--devices", type=click.IntRange(min=1), help="Plan for this many devices; there may be fewer here.")
@click.option("--measure", is_flag=True, help="Also time this spec's step and the plain cross-entropy step.")
@click.option(
    "--peak",
    type=click.FloatRange(min=0, min_open=True),
    metavar="TFLOPS",
    help="With --measure: what a device can do at best, in Tflop/s, by its maker; prints the share that is reached.",
)
@click.option(
    "--profile",
    type=click.Path(path_type=Path, file_okay=False),
    help="With --measure: write a trace of a few steps to this folder (jax.profiler).",
)
@click.option(
    "--compile/--estimate",
    "compiled",
    default=None,
    help="With or without XLA's figures; default unless that takes long.",
)
@json_option
def plan(
    spec: Path,
    on: Path | None,
    changes: dict[str, Any],
    devices: int | None,
    measure: bool,
    peak: float | None,
    profile: Path | None,
    compiled: bool | None,
    as_json: bool,
) -> None:
    """Show what SPEC costs: parameters, steps, forward-equivalents by part, flops, memory, and with --measure time.

    Needs no data where the dataset is a well-known or a built-in one, and prepares none.

    \b
    Examples:
      llrflow plan specs/quickstart.yaml --measure --profile trace
      llrflow plan specs/methods/llr.yaml --on specs/datasets/imagenet2012.yaml --devices 128
    """
    from llrflow.base.errors import SpecError
    from llrflow.commands.check_plugins import lower_bounds
    from llrflow.program.cost import plan as make_plan
    from llrflow.program.estimate import devices_of, program_of_share
    from llrflow.spec.load import load_spec

    loaded = load_spec(str(spec), changes, on)
    for option, given in (("--peak", peak), ("--profile", profile)):
        if given is not None and not measure:
            raise SpecError(option, "is about a step that is timed", "add --measure")
    program, count = program_of_share(loaded, devices_of(loaded) if devices is None else devices)
    result = make_plan(program, count, measure, compiled, peak, profile)
    result["at_least"] = lower_bounds(loaded)
    if loaded.sweep is not None:
        from llrflow.sweep.space.cost import sweep_cost

        result["sweep"] = sweep_cost(loaded, result["measured"]["step"] if measure else None)
    result["unchecked"] = list(_unchecked(program.facts))
    if as_json:
        print_json(result)
        return
    for line in (*_plan_lines(result), *result["unchecked"]):
        echo(line)


def _plan_lines(result: dict[str, Any]) -> Iterator[str]:
    from llrflow.commands.check_plugins import TRANSFORMED

    height, width, channels = result["image_shape"]
    yield f"{result['parameters']:,} parameters, images {height} x {width} x {channels}, {result['classes']} classes"
    yield (
        f"{result['steps']:,} steps of {result['batch_size']} images, "
        f"{result['per_device_batch']} on each of {result['devices']} {result['platform']} device(s)"
    )
    if result["validation_images"]:
        images = "{training_images:,} images to train on, {validation_images:,} held back from training"
        yield f"{images} (data.validation = {{held_back}})".format(**result)
    for role, choice in result["pipelines"].items():
        yield f"{role} images {choice['pipeline']}: {choice['why']}"
    if extra := result["extra"]:
        yield f"extra images {extra['pipeline']}: {extra['why']}"
        yield (
            f"{extra['share']:g} of each batch are images of {extra['name']} (labels {extra['labels']}): an epoch of "
            f"{result['training_images']:,} training images takes {extra['steps_per_epoch']:,} steps, one of "
            f"{extra['images']:,} extra ones {extra['steps_per_extra_epoch']:,}"
        )
    if result["accumulate_why"]:
        yield f"each device's share in {result['accumulate']} part(s): {result['accumulate_why']}"
    yield "cost of a step in passes over the network, each about one forward pass (F):"
    yield f"  {'':<42} {'forward':>8} {'backward':>8} {'derivative':>10} {'F':>5}"
    for part, count in result["passes"].items():
        cells = f"{count['forward']:>8} {count['backward']:>8} {count['derivative']:>10}"
        yield f"  {part:<42} {cells} {result['forward_equivalents'][part]:>5}"
    total, plain = result["forward_equivalents_per_step"], result["forward_equivalents_of_cross_entropy"]
    bound = "at least " if result["at_least"] else ""
    yield f"  {'total':<71} {total:>5} = {bound}{total / plain:.2f} x a cross-entropy step"
    by_xla = "xla_forward_equivalents" in result
    counted = f"; XLA counts {result['xla_forward_equivalents']:.1f} F" if by_xla else ""
    yield f"  search steps {result['search_steps']}{counted}"
    for name in result["at_least"]:
        yield f"  at least, for objective.terms.{name}: {TRANSFORMED}"
    if by_xla:
        flops, memory = result["xla_flops_per_step_and_device"], result["xla_memory_bytes_per_device"]
        yield f"XLA, per device: {flops / 1e9:.3g} Gflop a step, {memory / 2**20:.0f} MiB"
    yield from _estimate_lines(result)
    most = result["evaluation_forwards"]
    yield f"evaluation: at most {most:.3g} forward passes of an image; masking checks and studies not counted"
    if "measured" in result:
        times = result["measured"]
        yield (
            f"measured: {times['step'] * 1e3:.1f} ms a step, cross-entropy {times['cross_entropy_step'] * 1e3:.1f} ms, "
            f"ratio {times['ratio']:.2f} ({times['ratio_min']:.2f} to {times['ratio_max']:.2f})"
        )
        reached = f"{times['flops_per_second_and_device'] / 1e12:.3g} Tflop/s a device by the count"
        share = f", {times['share_of_peak']:.1%} of the stated peak" if "share_of_peak" in times else ""
        yield f"  {times['images_per_second']:,.0f} images/s on {times['devices']} device(s), {reached}{share}"
    if "sweep" in result:
        yield from _sweep_lines(result["sweep"])
    for warning in result["warnings"]:
        yield f"warning: {warning}"


def _sweep_lines(result: dict[str, Any]) -> Iterator[str]:
    """The cost of all trials of a sweep."""
    seeds = f" with {result['seeds']} seeds each" if result["seeds"] > 1 else ""
    early = "" if result["scheduler"] == "fifo" else f", less what {result['scheduler']} stops early"
    yield (
        f"sweep: {result['trials']:,} trials ({result['configurations']:,} configurations{seeds}), {result['kinds']:,} "
        f"compiled program(s) a worker; at most {result['steps']:,} steps and {result['looks']:,} looks{early}"
    )
    parts = [name for name in ("training", "look", "evaluation", "escalation") if f"{name}_forwards" in result]
    counts = ", ".join(f"{part} {result[f'{part}_forwards']:.3g}" for part in parts)
    total = sum(result[f"{part}_forwards"] for part in parts)
    yield f"  forward passes of an image: {total:.3g} ({counts}; masking checks not counted)"
    if "training_hours" in result:
        yield f"  training at the measured step of this spec: {result['training_hours']:.3g} h on one worker"


def _estimate_lines(result: dict[str, Any]) -> Iterator[str]:
    """Estimates from one forward pass: F times its flops, and memory by part."""
    flops, memory = result["estimated_flops_per_step_and_device"], result["estimated_memory_bytes_per_device"]
    total = result["estimated_flops_of_training"]
    yield (
        f"estimated from one forward pass of {result['forward_flops_per_image'] / 1e9:.3g} Gflop an image: "
        f"{flops / 1e9:.3g} Gflop a step and device, {total:.3g} flop in all"
    )
    parts = ", ".join(f"{name} {size / 2**20:.0f}" for name, size in memory.items())
    yield f"estimated memory per device: {sum(memory.values()) / 2**20:.0f} MiB ({parts})"


def _kinds(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from llrflow.components.registry import KINDS

    return [kind for kind in KINDS if kind.startswith(incomplete)]


@click.command()
@click.argument("kind", required=False, shell_complete=_kinds)
@click.option("--plugin", "plugins", multiple=True, metavar="FILE", help="Import a plugin first; repeatable.")
@json_option
def types(kind: str | None, plugins: tuple[str, ...], as_json: bool) -> None:
    """List every component, or those of one KIND, with its fields, their defaults and where it comes from.

    \b
    Examples:
      llrflow types term
      llrflow types --plugin my_terms.py --json
    """
    from llrflow.base.errors import SpecError
    from llrflow.base.validation import suggest
    from llrflow.components.registry import KINDS
    from llrflow.spec.catalog import catalog

    if kind is not None and kind not in KINDS:
        raise SpecError("types", f"{kind!r} is not a kind of component", suggest(kind, KINDS))
    _load(plugins)
    listed = {k: catalog(k) for k in KINDS if kind in (None, k)}
    if as_json:
        print_json(listed)
        return
    for name, components in listed.items():
        echo(name, bold=True)
        for component in components:
            echo(f"  {component['type']}  ({component['origin']})  {component['summary']}")
            for field in component["fields"]:
                default = "required" if field["required"] else f"= {field['default']}"
                echo(f"      {field['name']}: {field['type']} {default}  {field['summary']}".rstrip())


@click.command()
@click.option("--plugin", "plugins", multiple=True, metavar="FILE", help="Include a plugin's components; repeatable.")
@click.option("--of", "what", type=click.Choice(["spec", "evaluation"]), default="spec", help="Default spec.")
@click.option("--uri", is_flag=True, help="Print where the schema of a spec is installed, without plugins.")
def schema(plugins: tuple[str, ...], what: str, uri: bool) -> None:
    """Print the JSON Schema of a spec, for editors and other tools, or that of evaluation/STEP.json.

    Editors with a YAML language server complete and check a spec whose first line names its schema, as the one that
    `llrflow init` writes does. For plugins write a schema of your own beside the spec, and name that.

    \b
    Examples:
      llrflow schema --uri
      llrflow schema --plugin my_terms.py > my.schema.json
      llrflow schema --of evaluation
    """
    from llrflow.spec.catalog import json_schema

    if uri:
        echo(_schema_uri())
        return

    if what == "evaluation":
        from llrflow.runs.records import EvaluationRecord

        print_json(EvaluationRecord.model_json_schema())
        return
    _load(plugins)
    print_json(json_schema())


@click.command()
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False), default=Path("experiment.yaml"))
def init(path: Path) -> None:
    """Write a commented starter spec to PATH (default experiment.yaml); never overwrites.

    Its first line names the JSON Schema, by which VS Code (YAML extension) and others complete and check the spec.

    \b
    Example:
      llrflow init mine.yaml && llrflow run mine.yaml
    """
    from importlib.resources import files

    from llrflow.base.errors import SpecError
    from llrflow.base.files import write_atomic

    if path.exists():
        raise SpecError(str(path), "exists", "choose another name")
    if not path.parent.is_dir():
        raise SpecError(str(path), "has no parent folder", f"create {path.parent} first")
    header = f"# yaml-language-server: $schema={_schema_uri()}\n".encode()
    write_atomic(path, header + files("llrflow.spec").joinpath("starter.yaml").read_bytes())
    echo(f"wrote {path}; next: llrflow run {path}")


def _schema_uri() -> str:
    """Where the schema is installed: absolute, so that a spec may move, and as a URI, which may hold no space."""
    from importlib.resources import files

    return Path(str(files("llrflow.spec").joinpath("spec.schema.json"))).absolute().as_uri()


def _load(plugins: tuple[str, ...]) -> None:
    from llrflow.components.plugins import load_plugin

    for plugin in plugins:
        load_plugin(str(Path(plugin).resolve()) if plugin.endswith(".py") else plugin, plugin)
