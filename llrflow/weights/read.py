"""The arrays of a file, whatever program wrote it; nothing in it is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llrflow.base.arrays import NotArrays, read_npz
from llrflow.base.errors import CheckpointError, line_of
from llrflow.base.files import open_regular
from llrflow.base.validation import listing, some
from llrflow.weights.haiku_file import read_haiku
from llrflow.weights.safetensors import read_safetensors
from llrflow.weights.torch_file import read_torch

_READERS = {".npz": read_npz, ".npy": read_haiku, ".safetensors": read_safetensors}
_TORCH = (".pt", ".pth", ".ckpt", ".tar", ".bin")
_USUAL = ("state_dict", "model_state_dict", "model", "net")
"""Where checkpoints keep the network beside other things."""


def read_weights(path: Path, key: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of a file by the names they have there, views of it where they can be.

    NumPy's .npz; .npy of Haiku's parameters; .safetensors; what `torch.save` writes. Of a checkpoint that holds several
    dicts of arrays `key` chooses; without it one of the usual names is taken, or those of the file itself where they
    are more than any dict in it has. Raises CheckpointError where it cannot be read, or would have to be run.
    """
    suffix = path.suffix.lower()
    if suffix not in _READERS and suffix not in _TORCH:
        known = listing((*_READERS, *_TORCH))
        raise CheckpointError(str(path), "is of no format that is read", f"give a file that ends in {known}")
    try:
        with open_regular(path) as file:
            begins = file.read(6)
        if suffix in _READERS:
            found: Any = _READERS[suffix](path)
        elif begins[:2] == b"PK":
            found = read_torch(path)
        else:
            got = "is no file of torch.save, or one of a version before 1.6"
            raise CheckpointError(str(path), got, "load it there and save its state_dict once more")
    except OSError as error:
        raise CheckpointError(str(path), f"cannot be read: {error.strerror}", "name a file of weights") from None
    except NotArrays as error:
        got = f"cannot be read: {line_of(error)}"
        raise CheckpointError(str(path), got, "give a state_dict or other plain arrays") from None
    return _chosen(path, found, key)


def _chosen(path: Path, found: Any, key: str | None) -> dict[str, np.ndarray]:
    dicts = {"": _arrays(found)} if isinstance(found, Mapping) else {}
    if isinstance(found, Mapping):
        dicts |= {str(name): _arrays(held) for name, held in found.items() if isinstance(held, Mapping)}
    dicts = {name: arrays for name, arrays in dicts.items() if arrays}
    if key is not None:
        if key not in dicts:
            raise CheckpointError("--key", f"{path} holds no arrays under {key!r}", f"choose from {listing(dicts)}")
        return dicts[key]
    usual = [name for name in _USUAL if name in dicts]
    if len(usual) == 1:
        return dicts[usual[0]]
    if not dicts:
        raise CheckpointError(str(path), "holds no arrays by name", "save the state_dict of the network")
    first, *others = sorted(dicts.values(), key=len, reverse=True)
    if not others or (first is dicts.get("") and len(first) > len(others[0])):  # a network beside buffers of its own
        return first
    raise CheckpointError(str(path), some("holds arrays under ", sorted(filter(None, dicts))), "choose with --key")


def _arrays(held: Mapping[Any, Any]) -> dict[str, np.ndarray]:
    return {str(name): array for name, array in held.items() if isinstance(array, np.ndarray)}
