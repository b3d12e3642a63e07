"""A page for each component: what it is, its fields, a spec that has it, and the repository's specs that use it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optax

from llrflow.components.plugins import load_plugin
from llrflow.components.registry import KINDS, PLACE_FIELDS, Entry, entries
from llrflow.spec.catalog import catalog, json_schema
from llrflow.spec.source import dump_yaml
from llrflow_docs.fields import fields_table, kind_of
from llrflow_docs.prose import escape, fence, markdown, sources, table

KIND_TEXTS = {
    "term": "What an objective is made of: functions of one example that may be the loss, a penalty, or what a search "
    "or an attack maximises. See [the objective](/objective.md).",
    "model": "Networks. See [models](/models.md).",
    "attack": "What evaluations run. See [evaluation](/evaluation.md).",
    "augmentation": "Random changes of training images. See [data](/data.md).",
    "mixing": "Ways of mixing training examples with each other, labels and all. See [data](/data.md).",
    "dataset": "Datasets that prepare themselves; all others are prepared by TFDS or imported. See [data](/data.md).",
    "schedule": "Numbers that follow the training steps, wherever a field's type says so; optax's. "
    "See [the spec](/spec.md#values).",
    "optimizer": "optax's optimizers, with optax's argument names. See [training](/training.md).",
    "step": "How a search turns a gradient into a step. See [the objective](/objective.md#searches).",
    "start": "Where a search starts. See [the objective](/objective.md#searches).",
    "gradient": "How the parameter gradient is computed. See [the objective](/objective.md#around-the-gradient).",
    "domain": "Values of a swept parameter. See [sweeps](/sweep.md#parameters).",
    "scheduler": "Who may stop a trial of a sweep early; Tune's. See [sweeps](/sweep.md#schedulers).",
}
"""What each kind is; a new kind fails the build until it stands here."""

SAMPLES = {
    "pieces": {0: 4, "50%": 1},
    "learning_rate": 1e-3, "value": 1e-3, "init_value": 1e-4, "peak_value": 1e-3, "end_value": 1e-5, "decay_rate": 0.5,
    "power": 2.0, "decay_steps": "100%", "transition_steps": "50%", "warmup_steps": "5%",
    "optimizer": {"type": "adam", "learning_rate": 0.1}, "values": [1.0, 2.0, 4.0], "low": 1, "high": 10,
    "from": "objective.terms.gamma.weight", "run": "runs/other",
    "call": "networks:small",
}  # fmt: skip
"""A value for each field that has no default (or, for `run`, none that can be used)."""

OPTAX = "https://optax.readthedocs.io/en/latest/api/"
PAGES = {"optimizer": "optimizers", "schedule": "optimizer_schedules"}

Used = Mapping[tuple[str, str], list[str]]
"""Links to the specs of the repository that write a component out, by kind and type."""


def load_repository_plugins(root: Path) -> dict[str, str]:
    """Import the repository's plugins; the folder of each, by the origin of its components."""
    return {load_plugin(str(path.resolve())): path.parent.name for path in sorted(root.glob("plugins/*/*.py"))}


def component_pages(plugins: Mapping[str, str], used: Used) -> dict[str, str]:
    """Pages of all components and of their kinds, by path below the reference."""
    pages, definitions = {}, json_schema()["$defs"]
    for kind in KINDS:
        schemas = {option["title"]: option for option in definitions[kind]["anyOf"] if "title" in option}
        rows = []
        for row in catalog(kind):
            name, entry = row["type"], entries(kind)[row["type"]]
            pages[f"components/{kind}/{name}.md"] = _page(kind, name, entry, schemas[name], plugins, used)
            rows.append((f"[`{name}`]({kind}/{name}.md)", _rest(row["summary"]), _origin(entry, plugins)))
        names = "\n".join(f"{kind}/{row['type']}" for row in catalog(kind))
        pages[f"components/{kind}.md"] = "\n\n".join(
            (
                f"# {kind.capitalize()} components",
                KIND_TEXTS[kind],
                table(("type", "", "from"), rows),
                _place(kind),
                fence(f":hidden:\n\n{names}", "{toctree}"),
            )
        )
    listed = table(("kind", "components"), ((f"[{kind}]({kind}.md)", _links(kind)) for kind in KINDS))
    kinds = fence(":hidden:\n\n" + "\n".join(KINDS), "{toctree}")
    about = "Everything that a spec chooses by `type:`. These pages are made from the classes and their docstrings."
    pages["components/index.md"] = "\n\n".join(("# Components", about, listed, kinds))
    return pages


def _links(kind: str) -> str:
    return ", ".join(f"[{name}]({kind}/{name}.md)" for name in sorted(entries(kind)))


def _place(kind: str) -> str:
    """The fields that stand beside a component's own."""
    fields = PLACE_FIELDS.get(kind)
    if not fields:
        return ""
    names = ", ".join(f"`{field}`" for field in fields)
    return f"Where a spec names one, it also has {names}: see [the reference of the spec](../spec.md)."


def _page(kind: str, name: str, entry: Entry, schema: dict[str, Any], plugins: Mapping[str, str], used: Used) -> str:
    doc, notes, where = entry.cls.__doc__, {}, f"[{kind}](../{kind}.md) component from {_origin(entry, plugins, '../')}"
    if entry.origin == "optax":
        doc, notes = _of_optax(name)
        where += f": [optax.{name}]({OPTAX}{PAGES[kind]}.html#optax.{name})"
    cited = f"Source: {'; '.join(map(escape, found))}." if (found := sources(doc)) else ""
    users = used.get((kind, name), [])
    return "\n\n".join(
        (
            f"# {name}",
            f"{where}.",
            markdown(doc),
            cited,
            "## Fields",
            fields_table(entry.cls, schema, _link, notes),
            "## Example",
            "A part of a spec; the rest is, for instance, that of "
            "[quickstart.yaml](/reference/specs/specs.md#specsquickstartyaml).",
            fence(dump_yaml(example(kind, name)), "yaml"),
            f"## Specs that use it\n\n{', '.join(users)}" if users else "",
        )
    )


def _origin(entry: Entry, plugins: Mapping[str, str], up: str = "") -> str:
    if entry.origin in plugins:
        plugin = plugins[entry.origin]
        return f"the plugin [{plugin}]({up}../plugins/{plugin}.md)"
    return entry.origin


def _link(definition: str) -> str:
    """A link to a kind, or to a block of the spec, from a component's page."""
    kind = kind_of(definition)
    return f"[{kind}](../{kind}.md)" if kind else f"[{definition}](../../spec.md)"


def _rest(text: str) -> str:
    """One line of a table, optax's double backticks made single."""
    return escape(text.replace("``", "`"))


def _of_optax(name: str) -> tuple[str, dict[str, str]]:
    """Summary of an optax factory, and the texts below `Args:`, without reStructuredText's markup."""
    factory = getattr(optax, name)
    doc = inspect.getdoc(getattr(factory, "func", factory)) or ""
    doc = re.sub(r":\w+:`~?\.?([^`<]+?)(?: *<[^`]*>)?`", r"`\1`", doc).replace("``", "`")
    block = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", doc, re.DOTALL | re.MULTILINE)
    texts = re.findall(r"^  (\w+): (.*?)(?=^  \w+: |\Z)", block[1] if block else "", re.DOTALL | re.MULTILINE)
    return doc.split("\n\n")[0], {field: " ".join(text.split()) for field, text in texts}


HELD_BACK = {"data": {"validation": 0.1}}
"""What a sweep chooses by."""


def example(kind: str, name: str) -> dict[str, Any]:
    """A part of a spec that has the component, with its plain fields written out."""
    cls = entries(kind)[name].cls
    fields: dict[str, Any] = {"type": name}
    for field, info in cls.model_fields.items():
        if info.is_required() or field == "run":
            fields[field] = SAMPLES[field]
        elif isinstance(default := info.default, (bool, int, float, str)) and not _is_constant(info):
            fields[field] = default
    plugin = entries(kind)[name].origin
    if "call" in fields:
        plugin = f"{fields['call'].partition(':')[0]}.py"
    head = {"plugins": [f"{Path(plugin).name}"]} if plugin.endswith(".py") else {}
    return {**head, **_in_place(kind, name, fields)}


def _is_constant(info: Any) -> bool:
    """A field with one value only says nothing."""
    return len(getattr(info.annotation, "__args__", ())) == 1 and str(info.annotation).startswith("typing.Literal")


def _in_place(kind: str, name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Where a spec has a component of the kind."""
    cls = entries(kind)[name].cls
    if kind == "term":
        searched = getattr(cls, "needs_perturbation", False)
        search = {"perturbations": {"llr": {"maximize": {"type": "local_linearity"}, "steps": 2}}} if searched else {}
        term = {**fields, "at": "llr" if searched else "clean", "weight": 1.0}
        return {"objective": {**search, "terms": {"mine": term}}}
    if kind == "attack":
        norms = getattr(cls, "norms", ())
        threat = {"threat": {"norm": norms[0], "epsilon": 1.0}} if norms == ("l2",) else {}
        return {**threat, "evaluate": {"attacks": {"mine": fields}}}
    if kind == "dataset":
        options = {key: value for key, value in fields.items() if key != "type"}
        return {"data": {"name": name, **({"options": options} if options else {})}}
    if kind == "schedule":
        place = {"train": {"ema": fields}} if name == "equal_average" else None
        return place or {"optimizer": {"type": "sgd", "learning_rate": fields}}
    if kind in ("step", "start"):
        term = "cross_entropy" if name == "zero" else "local_linearity"  # which is flat there
        return {"objective": {"perturbations": {"llr": {"maximize": {"type": term}, kind: fields}}}}
    if kind == "domain":
        path = "model.dense" if name == "integer" else "objective.terms.slope.weight"
        draws = {"search": {"type": "grid"}} if name == "grid" else {"trials": 4}
        return {**HELD_BACK, "sweep": {"parameters": {"mine": {**fields, "path": path}}, **draws}}
    if kind == "scheduler":
        weights = {"type": "loguniform", "low": 0.1, "high": 10}
        found = {"parameters": {"objective.terms.gamma.weight": weights}, "trials": 8, "scheduler": fields}
        return {**HELD_BACK, "sweep": found}
    places = {
        "model": {"model": fields},
        "augmentation": {"data": {"augment": {"mine": fields}}},
        "mixing": {"data": {"mix": {"mine": fields}}},
        "optimizer": {"optimizer": fields},
        "gradient": {"objective": {"gradient": fields}},
    }
    return places[kind]
