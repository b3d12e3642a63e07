"""What a network's arrays are called in another program, and how they lie there: a table, read in both directions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator

from llrflow.base.validation import invalid
from llrflow.models.network import STATISTICS

_TORCH = {
    "w": "weight",
    "b": "bias",
    "scale": "weight",
    "offset": "bias",
    "mean_ema/average": "running_mean",
    "var_ema/average": "running_var",
}
"""PyTorch's names of what Haiku's modules hold."""

OWN = "llrflow"
"""Our own names: `params/MODULE/NAME` and `state/MODULE/NAME` in what `llrflow export` writes, `DOTTED` for PyTorch."""

_FIELD = re.compile(r"\{(\w+)([+-]\d+)?\}")

Tree = Mapping[str, Mapping[str, Any]]
"""Arrays by module and name, as Haiku keeps them."""


class Flattened(BaseModel):
    """A linear layer on flattened features, of which PyTorch has the channels first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    flattened: tuple[PositiveInt, PositiveInt, PositiveInt] = Field(strict=False)
    """(C, H, W) of the features."""


class Named(NamedTuple):
    """An array of ours, and what it is there."""

    module: str
    name: str
    shape: tuple[int, ...]
    there: str
    """By the layout, or as in llrflow where that has no name for it."""
    leaf: str
    """`w`, `b`, `scale` ...; empty where the array itself, not its module, has a name there."""
    flattened: tuple[int, int, int] | None


class Layout(BaseModel):
    """A layout of arrays. `names` are those of modules, or of arrays, of ours, with those that they have there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[str, ...] = Field((), strict=False)
    """Types of networks that have it."""
    style: Literal["torch", "haiku"] = "torch"
    """`torch`: dots between names, `weight` and `bias`, channels first; `haiku`: as ours but for names of modules."""
    fields: dict[str, Any] = {}
    """Fields of the model that such networks have, by name."""
    asks: dict[str, str] = {}
    """Fields that such a file does not tell, with what to choose from."""
    names: dict[str, str | Flattened]
    """`{x}` stands for any text without a slash, in the value `{x+1}` for the number after it."""
    ignores: tuple[str, ...] = Field((), strict=False)
    """Patterns, `*` for any text, of what is there and no part of the network."""

    @field_validator("names")
    @classmethod
    def _fields_are_known(cls, names: dict[str, str | Flattened]) -> dict[str, str | Flattened]:
        for ours, there in names.items():
            name, known = there.name if isinstance(there, Flattened) else there, re.findall(r"\{(\w+)\}", ours)
            for field in known:
                if not field.isidentifier():
                    raise invalid("names", f"{ours}: {{{field}}} is no field; begin its name with a letter")
            for field in _FIELD.finditer(name):
                if field[1] not in known:
                    raise invalid(
                        "names", f"{ours}: {name} has {{{field[1]}}}, which {ours} has not; write {{x}} on both sides"
                    )
        return names

    def named(self, params: Tree, state: Tree) -> Iterator[Named]:
        """The arrays of a network as they are there; of moving statistics the average.

        Raises ValueError where `names` do not suit this network: `{x+1}` of no number, features of another size.
        """
        for module, held in {**params, **state}.items():
            for name, array in held.items():
                base, _, last = module.rpartition("/~/")
                if last not in STATISTICS:
                    base, leaf = module, name
                elif name != "average":
                    continue
                else:
                    leaf = f"{last}/{name}"
                yield self._named(module, name, np.shape(array), base, leaf)

    def _named(self, module: str, name: str, shape: tuple[int, ...], base: str, leaf: str) -> Named:
        if (found := self._found(f"{module}/{name}")) is not None:
            return Named(module, name, shape, found[0], "", None)
        there, flattened = self._found(base) or (base, None)
        if flattened and leaf == "w" and (len(shape) != 2 or math.prod(flattened) != shape[0]):
            features = f"{' x '.join(map(str, flattened))} are {math.prod(flattened)}"
            raise ValueError(f"{module}/w is {list(shape)}, and flattened features {features}")
        if self.style == "haiku":
            return Named(module, name, shape, f"{there}/{leaf}", leaf, flattened)
        parts = [part for part in there.split("/") if part != "~"]
        return Named(module, name, shape, ".".join([*parts, _TORCH.get(leaf, leaf)]), leaf, flattened)

    def _found(self, ours: str) -> tuple[str, tuple[int, int, int] | None] | None:
        """The name there of a module or an array of ours."""
        for pattern, there in self.names.items():
            if (match := _regex(pattern).fullmatch(ours)) is not None:
                name, flattened = (there.name, there.flattened) if isinstance(there, Flattened) else (there, None)
                return _FIELD.sub(lambda field, match=match: _filled(field, match), name), flattened
        return None

    @property
    def fixed(self) -> list[str]:
        """The names there that are the same in networks of any depth."""
        names = (there.name if isinstance(there, Flattened) else there for there in self.names.values())
        return [name for name in names if not _FIELD.search(name)]

    def is_ignored(self, there: str) -> bool:
        """Whether what has that name there is no part of the network."""
        patterns = (*self.ignores, "*.num_batches_tracked", "*_ema/hidden", "*_ema/counter")
        return any(re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), there) for pattern in patterns)

    def shape_there(self, one: Named) -> tuple[int, ...]:
        """The shape that an array of ours has there."""
        return np.shape(self.out_of(np.broadcast_to(np.int8(0), one.shape), one))

    def out_of(self, array: np.ndarray, one: Named) -> np.ndarray:
        """An array of ours as it lies there: a view where it can be one."""
        if self.style == "haiku":
            return array
        if one.leaf == "w":
            if one.flattened is not None:
                channels, height, width = one.flattened
                split = array.reshape(height, width, channels, -1)
                return split.transpose(3, 2, 0, 1).reshape(split.shape[-1], -1)
            return array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
        return array.reshape(-1) if one.leaf in _TORCH else array

    def into(self, array: np.ndarray, one: Named) -> np.ndarray:
        """An array of the right shape there as ours, float32."""
        if self.style == "torch" and one.leaf == "w":
            if one.flattened is not None:
                array = array.reshape(len(array), *one.flattened)
            array = array.transpose((2, 3, 1, 0) if array.ndim == 4 else (1, 0))
        return np.ascontiguousarray(array.reshape(one.shape), np.float32)


DOTTED = Layout.model_validate({"names": {}})
"""The names of networks without a known layout: as in llrflow, with dots."""


def _regex(pattern: str) -> re.Pattern[str]:
    found, at = "", 0
    for field in re.finditer(r"\{(\w+)\}", pattern):
        seen = f"(?P<{field[1]}>" in found
        found += re.escape(pattern[at : field.start()]) + (f"(?P={field[1]})" if seen else f"(?P<{field[1]}>[^/]+?)")
        at = field.end()
    return re.compile(found + re.escape(pattern[at:]))


def _filled(field: re.Match[str], match: re.Match[str]) -> str:
    text = match[field[1]]
    if field[2] is not None and not text.isdecimal():
        raise ValueError(f"{field[0]} for {match[0]}: {text!r} is no number")
    return text if field[2] is None else str(int(text) + int(field[2]))
