"""Named attacks for `llrflow evaluate`: a preset that comes with llrflow, or a file of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any, get_args

from llrflow.attacks.base import Attack
from llrflow.base.errors import SpecError
from llrflow.base.validation import listing
from llrflow.components.registry import make
from llrflow.spec.source import read_source
from llrflow.spec.sweep_schema import Preset

PRESETS: tuple[str, ...] = get_args(Preset)

NONE = "none"
"""What `--attacks` takes besides: nothing is attacked."""


def preset_attacks(preset: str) -> dict[str, Attack]:
    """The attacks of a preset, by name."""
    return {name: make("attack", config) for name, config in evaluate_block(preset)["attacks"].items()}


def changed_block(attacks: str | Mapping[str, Any] | None, stop_after: int | None) -> dict[str, Any]:
    """What of the `evaluate` block another evaluation changes, by path: its attacks, how many images. Raises SpecError.

    Empty where it changes nothing.
    """
    block = {} if attacks is None else evaluate_block(attacks)
    return block if stop_after is None else {**block, "images.count": stop_after}


def evaluate_block(attacks: str | Mapping[str, Any]) -> dict[str, Any]:
    """What an `evaluate` block says: of a preset by name, of a YAML file by path, or of a mapping as it stands there.

    `none` is no attack at all, and no signs of masking: nominal accuracy alone.

    A file or mapping holds `attacks:` or `threats:` and other fields of the block, or the named attacks alone. Raises
    SpecError.
    """
    if isinstance(attacks, str) and attacks in PRESETS:
        with resources.as_file(resources.files("llrflow.runs") / "presets" / f"{attacks}.yaml") as path:
            return dict(read_source(str(path)).data)
    if attacks == NONE:
        return {"attacks": {}, "checks": {"examples": 0}}
    try:
        data = attacks if isinstance(attacks, Mapping) else read_source(attacks).data
    except SpecError as error:
        if isinstance(attacks, str) and "." not in attacks and "/" not in attacks:
            raise SpecError(
                "--attacks", f"{attacks!r} is no preset", f"choose from {listing((*PRESETS, NONE))}"
            ) from error
        raise
    named = data.get("attacks", data.get("threats"))
    whole = isinstance(named, Mapping) and "type" not in named
    return dict(data) if whole else {"attacks": dict(data)}
