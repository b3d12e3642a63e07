"""A certificate as text: the accuracies as a table, the classes, distances and linearity, the signs of masking."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llrflow.runs.records import Certificate, ClassesRecord

if TYPE_CHECKING:
    from rich.console import Console


def print_certificate(evaluation: Certificate, title: str, out: Console) -> None:
    """One evaluation in full, under a title."""
    from rich.markup import escape
    from rich.table import Table

    mark = "<= " if evaluation.fired else ""
    table = Table(title=escape(title), title_justify="left")
    robust = "still correct" if evaluation.cascade else "accuracy"
    for heading in ("", robust, "95 % interval", "attacked", "changed"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, share in evaluation.shares.items():
        low, high = share.interval
        made = evaluation.attacks.get(name)
        counts = ("", "") if made is None else (str(made.attacked), str(made.kills))
        bound = "" if name == "nominal" else mark
        table.add_row(name, f"{bound}{share.accuracy:.2%}", f"{low:.2%} to {high:.2%}", *counts)
        for stage, part in made.stages.items() if made else ():
            table.add_row(f"  {stage}", "", "", str(part.attacked), str(part.kills))
    out.print(table)
    if evaluation.classes is not None and len(evaluation.classes.names) > 1:
        out.print(_by_class(evaluation.classes), highlight=False, markup=False, soft_wrap=True)
    for name, made in evaluation.attacks.items():
        if made.minimum is not None:
            median = "beyond what it found" if made.minimum.median is None else f"{made.minimum.median:.4g}"
            share = f"{made.minimum.beyond_epsilon:.2%} of the images lie beyond epsilon"
            out.print(f"{name}: median distance {median}, {share}", highlight=False, soft_wrap=True)
    for name, values in evaluation.gamma.items():
        median, high = values.quantiles["0.5"], values.quantiles["0.95"]
        out.print(
            f"linearity error at {name}: mean {values.mean:.3g}, median {median:.3g}, 95 % below {high:.3g} nats",
            highlight=False,
            soft_wrap=True,
        )
    for flag in evaluation.fired:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in flag.measured.items())
        out.print(f"MASKED? {flag.name}: {flag.meaning} ({numbers})", style="bold red", highlight=False, markup=False)
    if not evaluation.checked:
        out.print("signs of gradient masking: not looked for (no examples to try)", highlight=False)
    elif not evaluation.fired:
        out.print(f"signs of gradient masking: none on {evaluation.checked} images", highlight=False)


def _by_class(found: ClassesRecord) -> str:
    """The classes with the lowest worst case, and whom it takes for whom most often."""
    shares = found.accuracy["worst case"]
    lowest = sorted((share, at) for at, share in enumerate(shares) if share is not None)[:3]
    most = sorted(found.mistaken("worst case").items(), key=lambda item: (-item[1], item[0]))[:3]
    taken = ", ".join(f"{found.names[true]} for {found.name_of(other)} ({n})" for (true, other), n in most)
    classes = ", ".join(f"{found.names[at]} {share:.2%}" for share, at in lowest)
    return f"lowest worst case by class: {classes}" + (f"\nmost often taken: {taken}" if taken else "")
