"""What the kit found, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Rows = Mapping[str, list[dict[str, Any]]]


def markdown(rows: Rows, peaks: Mapping[str, float], target: float) -> str:
    """The page: device, comparisons, rates, AutoAttack, the run of a spec, and what was cut off.

    `peaks` are Tflop/s of the device by precision, as stated by who ran the kit; `target` is what the rates in the
    column of that name come from.
    """
    return (
        "\n".join([*_device(rows), *_checks(rows), *_rates(rows, peaks, target), *_attack(rows), *_rest(rows)]) + "\n"
    )


def _device(rows: Rows) -> Iterator[str]:
    for row in rows["device"]:
        if "device" in row:
            yield f"# {row['device']}, jax {row['jax']}"
            yield ""
            yield ", ".join(f"{name} {value}" for name, value in row.items() if value)


def _checks(rows: Rows) -> Iterator[str]:
    yield from ("", "| check | found | limit | |", "|---|---|---|---|")
    for row in [*rows["exact"], *rows["resume"]]:
        if "check" in row:
            limits = [f"{word} {row[key]:g}" for key, word in (("at_most", "<="), ("at_least", ">=")) if key in row]
            value = f"{row['value']:.3g}" if "value" in row else ""
            yield f"| {row['check']} | {value} | {''.join(limits)} | {'holds' if row['ok'] else '**fails**'} |"


def _rates(rows: Rows, peaks: Mapping[str, float], target: float) -> Iterator[str]:
    counts = {(row["network"], row["method"]): row for row in rows["counts"] if "passes" in row}
    torch = {_case(row): row for row in rows["in_torch"] if "torch_images_per_second" in row}
    tried: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows["speed"]:
        if "network" in row:
            tried.setdefault((row["network"], row["method"], row["precision"]), []).append(row)
    yield ""
    head = "network | method | precision | batch (tried) | images/s | Tflop/s | of peak"
    yield f"| {head} | at {target:g} Tflop/s | PyTorch |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for case, found in tried.items():
        rated = [row for row in found if "images_per_second" in row]
        sizes = ", ".join(str(row["batch"]) for row in found)
        if not rated:
            yield f"| {' | '.join(case)} | ({sizes}) | {found[0]['refused']} | | | | |"
            continue
        best = max(rated, key=lambda row: row["images_per_second"])
        flops = aimed = share = ""
        if count := counts.get(case[:2]):
            each = count["passes"] * count["forward_flops"]
            flops, aimed = f"{best['images_per_second'] * each / 1e12:.3g}", f"{target * 1e12 / each:,.0f}"
            if peak := peaks.get(case[2]):
                share = f"{best['images_per_second'] * each / peak / 1e12:.1%}"
        other = torch.get(_case(best))
        theirs = f"{other['torch_images_per_second']:,.0f}" if other else ""
        rate = f"{best['images_per_second']:,.0f}"
        yield f"| {' | '.join(case)} | {best['batch']} ({sizes}) | {rate} | {flops} | {share} | {aimed} | {theirs} |"


def _case(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["network"], row["method"], row["precision"], row["batch"]


def _attack(rows: Rows) -> Iterator[str]:
    found = [row for row in rows["auto_attack"] if "stage" in row]
    if not found:
        return
    yield from ("", "| stage of AutoAttack | s per 1,000 images | passes an image | timed |", "|---|---|---|---|")
    for row in found:
        if "refused" in row:
            yield f"| {row['network']} {row['stage']} | | | {row['refused']} |"
        else:
            cells = f"{row['seconds_per_1000']:.0f} | {row['passes']:,} | {row['timed']}, {row['standing']} stood"
            yield f"| {row['network']} {row['stage']} | {cells} |"
    if len(rated := [row["seconds_per_1000"] for row in found if "seconds_per_1000" in row]) == 4:
        yield f"| all, while all images stand | {sum(rated):.0f} | | multiplied up |"


def _rest(rows: Rows) -> Iterator[str]:
    for row in rows["from_spec"]:
        if "nominal" in row:
            yield ""
            yield (
                f"Fashion-MNIST from spec to certificate: {row['seconds']:.0f} s, n = {row['images']}, "
                f"nominal {row['nominal']:.2%}, worst case {row['worst_case']:.2%}"
            )
    left = [f"- {part}: {row[key]}" for part, found in rows.items() for row in found for key in LEFT if key in row]
    if left:
        yield from ("", "Cut off or failed:", "", *left)


LEFT = ("cut", "failed")
