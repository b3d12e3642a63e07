"""What components of each kind are called with: checked when they register."""

from __future__ import annotations

import inspect

from llrflow.base.errors import PluginError

METHODS: dict[str, dict[str, tuple[str, ...]]] = {
    "term": {"__call__": ("probe", "delta")},
    "model": {"__call__": ("images", "classes", "batch_statistics")},
    "augmentation": {"__call__": ("image", "key")},
    "mixing": {"__call__": ("image", "partner", "key")},
    "start": {"__call__": ("threat", "x", "keys")},
    "step": {"init": ("delta",), "move": ("gradient", "delta", "state", "threat", "auto")},
    "gradient": {"__call__": ("gradient", "params")},
    "attack": {
        "begin": ("probes", "threat", "keys", "run"),
        "advance": ("probes", "threat", "state", "index"),
        "finish": ("probes", "threat", "state"),
    },
    "dataset": {"prepare": ("data_dir",)},
    "optimizer": {"build": ()},
    "schedule": {"build": ()},
    "domain": {"draw": ("u", "value_of"), "listed": ()},
    "scheduler": {"build": ("rungs",)},
}
"""Methods and their arguments by kind. A term that defines `init_state` is also given its state."""


def check_methods(kind: str, cls: type) -> None:
    """Raise PluginError when a class cannot be called as components of its kind are."""
    for method, arguments in METHODS[kind].items():
        if kind == "term" and hasattr(cls, "init_state"):
            arguments = (*arguments, "state")
        wanted = f"def {method}({', '.join(('self', *arguments))})"
        # Not getattr alone: every class has the __call__ of its metaclass.
        found = getattr(cls, method) if any(method in vars(base) for base in cls.__mro__) else None
        if not callable(found):
            raise PluginError(cls.__qualname__, f"has no method {method}", f"a {kind} needs `{wanted}`")
        signature = inspect.signature(found)
        try:
            signature.bind(cls, *arguments)
        except TypeError as error:
            raise PluginError(cls.__qualname__, f"{method}{signature}: {error}", f"a {kind} needs `{wanted}`") from None
