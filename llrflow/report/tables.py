"""Tables of a report, and how they are written for a page, for Markdown and for LaTeX."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llrflow.base.harmless import markdown_cell, printable
from llrflow.base.shown import description, measured, telling
from llrflow.report.read import ReadRun, ReadSweep
from llrflow.runs.records import EvaluationRecord, Proportion, RunRecord
from llrflow.sweep.tracking.records import SweepRecord


@dataclass(frozen=True)
class Table:
    """A table as text; its first column names the rows."""

    name: str
    """For file names."""
    title: str
    headings: list[str]
    rows: list[list[str]]
    note: str = ""

    def _repr_markdown_(self) -> str:
        """What a notebook shows."""
        return markdown(self)


def markdown(table: Table) -> str:
    """As a GitHub-flavoured Markdown table."""
    lines = [table.headings, ["---", *["---:"] * (len(table.headings) - 1)], *table.rows]
    body = "\n".join("| " + " | ".join(map(markdown_cell, line)) + " |" for line in lines)
    return f"**{markdown_cell(table.title)}**\n\n{body}\n" + (f"\n{markdown_cell(table.note)}\n" if table.note else "")


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "≤": r"$\le$",
    "±": r"$\pm$",
    "[": "{[}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def latex(table: Table) -> str:
    """As a LaTeX table that needs no package but booktabs."""
    lines = [" & ".join(_escaped(cell) for cell in line) + r" \\" for line in (table.headings, *table.rows)]
    note = f"\n\n{_escaped(table.note)}" if table.note else ""
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escaped(table.title)}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.headings) - 1)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            rf"\end{{tabular}}{note}",
            r"\end{table}",
            "",
        ]
    )


def _plain(text: str) -> str:
    return " ".join(text.split())


def _escaped(text: str) -> str:
    text = "".join(_LATEX.get(character, character) for character in printable(_plain(text)))
    return re.sub(
        r"(?<![\w.-])l(inf|1|2)(?![\w\\.-])",
        lambda norm: rf"$\ell_{{{norm[1].replace('inf', chr(92) + 'infty')}}}$",
        text,
    )


def percent(share: Proportion, bound: str = "") -> str:
    """Accuracy with its 95 % interval; `bound` stands before an upper bound."""
    low, high = share.interval
    return f"{bound}{share.accuracy:.2%} ({low * 100:.1f} to {high * 100:.1f})"


def alike(runs: Sequence[ReadRun]) -> list[list[tuple[ReadRun, EvaluationRecord]]]:
    """Evaluations in groups whose accuracies compare: of the same images, threat and attacks."""
    groups: dict[str, list[tuple[ReadRun, EvaluationRecord]]] = {}
    for run in runs:
        for evaluated in run.evaluations:
            record = evaluated.record
            key = [record.attacked_within, record.cascade, record.ids_sha256, attack_list(record)]
            groups.setdefault(json.dumps(key, sort_keys=True), []).append((run, record))
    return list(groups.values())


def attack_list(record: EvaluationRecord) -> list[tuple[str, dict[str, Any]]]:
    """The attacks with their names, in their order where it matters: in a cascade."""
    attacks = [(name, made.attack) for name, made in record.attacks.items()]
    return attacks if record.cascade else sorted(attacks, key=lambda pair: pair[0])


def results(runs: Sequence[ReadRun]) -> Iterator[Table]:
    """Methods x attacks with 95 % intervals: a table for each group of evaluations that compare."""
    for number, group in enumerate(alike(runs)):
        first = group[0][1]
        title = f"Accuracy on {first.described}, {first.within}"
        how = "Each attack saw every image that is classified correctly."
        if first.cascade:
            how = "A column is what still stood after its attack: each saw only what those to its left had left correct"
            how += (
                " (minimum-norm attacks saw every correct image)."
                if any(m.minimum for m in first.attacks.values())
                else "."
            )
        rows = []
        for run, record in group:
            mark = "≤ " if record.fired else ""
            nominal, *robust = (record.shares[name] for name in first.shares)
            known = " (trained on test images)" if run.record.trained_on_test else ""
            rows.append([f"{run.name}{known}", percent(nominal), *(percent(share, mark) for share in robust)])
        described = "; ".join(f"{name}: {description(attack.attack)}" for name, attack in first.attacks.items())
        masked = any(record.fired for _, record in group)
        bound = " ≤ marks an upper bound: signs of gradient masking were found." if masked else ""
        note = f"In brackets 95 % intervals (Wilson). {how}{bound} {described}."
        yield Table(f"results-{number + 1}", title, ["", *first.shares], rows, note)


def kills(runs: Sequence[ReadRun]) -> Iterator[Table]:
    """For each attack on how many images it was run, how many it changed, and what it spent on an image."""
    rows = []
    for run in runs:
        for evaluated in run.evaluations:
            for name, made in evaluated.record.attacks.items():
                parts = [(name, made), *((f"{name}: {stage}", part) for stage, part in made.stages.items())]
                for title, part in parts:
                    each = [spent / max(part.attacked, 1) for spent in (part.queries, part.gradients)]
                    counts = [f"{part.attacked:,}", f"{part.kills:,}", *(f"{spent:,.1f}" for spent in each)]
                    rows.append([f"{run.name}, {title}", *counts, f"{part.seconds:.1f}"])
    if rows:
        headings = ["attack", "attacked", "changed", "forward passes an image", "backward passes an image", "seconds"]
        yield Table("kills", "What each attack did", headings, rows)


def costs(runs: Sequence[ReadRun]) -> Iterator[Table]:
    """Cost of a step in forward passes and in time, and time by part."""
    parts = list(dict.fromkeys(part for run in runs for part in run.record.seconds))
    rows = []
    for run in runs:
        seconds, steps = run.record.seconds, max(run.record.step, 1)
        cells = [f"{seconds[part]:.1f}" if part in seconds else "" for part in parts]
        step = f"{1e3 * seconds['train'] / steps:.1f}" if "train" in seconds else ""
        devices = f"{len(run.record.devices)} x {run.record.devices[0].split(':')[0]}" if run.record.devices else ""
        passes = run.record.forward_equivalents
        counted = "" if passes is None else str(passes)
        rows.append([run.name, f"{run.record.step:,}", counted, step, *cells, f"{sum(seconds.values()):.1f}", devices])
    headings = [
        "",
        "steps",
        "forward-equivalents a step",
        "ms a step",
        *(f"{part} (s)" for part in parts),
        "in all (s)",
        "devices",
    ]
    note = "Times are wall times on the machine of each run; a forward-equivalent is a forward pass of the batch."
    if rows:
        yield Table("cost", "What it cost", headings, rows, note)


def differing(runs: Sequence[ReadRun]) -> Table | None:
    """Values of the specs that are not the same in all runs, by dotted path; None where all are.

    Left out are defaults of blocks that not all runs have.
    """
    flat = [dict(leaves(run.spec)) for run in runs]
    differ = [path for path in differing_paths(flat, [run.record for run in runs]) if path != "name"]
    if not differ:
        return None
    rows = [[path, *(_text(one[path]) if path in one else "" for one in flat)] for path in differ]
    return Table("differences", "What differs between the runs", ["", *(run.name for run in runs)], rows)


def differing_paths(specs: Sequence[Mapping[str, Any]], records: Sequence[RunRecord]) -> list[str]:
    """Paths of the `leaves` of specs that are not the same in all, without defaults of blocks that not all have."""
    written = {path for record in records for path in record.origins}
    paths = dict.fromkeys(path for spec in specs for path in spec)
    known = [path for path in paths if path in written or all(path in spec for spec in specs)]
    return [p for p in known if any(p not in spec or spec[p] != specs[0].get(p) for spec in specs)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def best_checkpoints(runs: Sequence[ReadRun]) -> Iterator[Table]:
    """What the looks of `checkpoint.best` have chosen, and what was lost from there to the end of training."""
    rows = []
    for run in runs:
        if (found := run.chosen) is not None:
            shares = [f"{share:.2%}" for share in (found.best_robust, found.last_robust)]
            gap = f"{100 * (found.best_robust - found.last_robust):.2f}"
            rows.append([run.name, f"{found.best:,}", shares[0], f"{found.last:,}", shares[1], gap])
    if rows:
        headings = ["", "best step", "worst case", "last step", "worst case", "gap"]
        note = "By looks at validation images alone; the gap, in percentage points, is robust overfitting."
        yield Table("best-checkpoints", "Best and last checkpoint", headings, rows, note)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything in a spec that holds nothing further."""
    if isinstance(value, Mapping) and value:
        for key, below in value.items():
            yield from leaves(below, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def tellers(record: SweepRecord) -> dict[str, Callable[[Any], str]]:
    """How the values of each swept parameter are named: by what differs among the configurations."""
    given = [one.parameters for one in record.configurations]
    names = dict.fromkeys(name for parameters in given for name in parameters)
    return {name: telling(parameters[name] for parameters in given if name in parameters) for name in names}


def configurations(sweep: ReadSweep, name: str) -> Table:
    """A sweep's configurations, best first; of several seeds each is a mean."""
    record = sweep.record
    seeds = max((len(one.trials) for one in record.configurations), default=1)
    variants = any(one.variant for one in record.configurations)
    tell = tellers(record)
    presets = dict.fromkeys(trial.escalated.attacks for trial in record.trials if trial.escalated is not None)
    rows = []
    for one in record.configurations:
        values = [text(one.parameters[name]) if name in one.parameters else "" for name, text in tell.items()]
        values = [one.variant or "", *values] if variants else values
        mean = measured(record.metric, one.mean, one.spread)
        nominal = _mean([record.trials[number].nominal for number in one.trials])
        stronger = ["" if one.escalated is None else f"{one.escalated:.2%}"] if presets else []
        numbers = ", ".join(map(str, one.trials))
        rows.append([numbers, mean, *stronger, nominal, *values, one.excluded or "finished"])
    counted = ("trial", "trials")[len(record.trials) != 1]
    title = f"Sweep {record.name}: {len(record.trials)} {counted}, {record.steps_trained:,} steps, {record.state}"
    told = [*(["variant"] if variants else []), *tell]
    headings = ["trial", record.metric, *([", ".join(presets)] if presets else []), "nominal", *told, "state"]
    note = f"Only what finished with every seed can win, {record.chosen_on}; nominal accuracy is that on test images."
    if seeds > 1:
        headings[0] = "trials"
        note += " Accuracies are means over seeds; after ± the standard deviation (n - 1)."
    if presets:
        note += " Those that were attacked again with stronger attacks are ranked by what these left."
    return Table(f"{name}-configurations", title, headings, rows, note)


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{sum(known) / len(known):.2%}" if known else ""
