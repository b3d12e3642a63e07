"""Parameters that training leaves as they are (`train.freeze`), and the statistics of their layers."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import haiku as hk
import jax
import optax

from llrflow.base.errors import SpecError
from llrflow.base.validation import suggest
from llrflow.models.network import has_statistics
from llrflow.spec.load import at
from llrflow.spec.schema import Spec


class Frozen(NamedTuple):
    """What `train.freeze` and `train.freeze_statistics` say."""

    patterns: tuple[str, ...] = ()
    statistics: bool = False

    def mask(self, params: Mapping[str, Any]) -> dict[str, dict[str, bool]]:
        """Whether each parameter is frozen, in the shape of the parameters."""
        return {module: {n: self.matches(f"{module}/{n}") for n in arrays} for module, arrays in params.items()}

    def matches(self, name: str) -> bool:
        """Whether a parameter `module/name` is frozen."""
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)

    def layers(self, params: Mapping[str, Any]) -> frozenset[str]:
        """The modules whose moving statistics are frozen: those all of whose parameters are, if that is asked for."""
        mask = self.mask(params) if self.statistics else {}
        return frozenset(module for module, arrays in mask.items() if arrays and all(arrays.values()))

    def apart(self, params: Any) -> Any:
        """The parameters, those that are frozen as constants: their gradients are zero and cost nothing."""
        if not self.patterns:
            return params
        return jax.tree.map(lambda frozen, p: jax.lax.stop_gradient(p) if frozen else p, self.mask(params), params)

    def kept(self, before: Any, after: Any) -> Any:
        """`after` with the frozen parameters of `before`: an average with itself may differ in the last bit."""
        if not self.patterns:
            return after
        return jax.tree.map(lambda frozen, b, a: b if frozen else a, self.mask(after), before, after)

    def kept_statistics(self, params: Mapping[str, Any], before: Any, after: Any) -> Any:
        """A Haiku state `after` with the moving statistics of frozen layers `before`."""
        layers = self.layers(params)
        return {
            module: before[module] if any(module.startswith(f"{layer}/") for layer in layers) else held
            for module, held in after.items()
        }

    def updating(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        """The optimizer for the other parameters: frozen ones get neither steps, nor decay, nor a state."""
        if not self.patterns:
            return optimizer

        def labels(params: Any) -> Any:
            return jax.tree.map(lambda frozen: "frozen" if frozen else "trained", self.mask(params))

        return optax.partition({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)

    def normalising(self, network: hk.TransformedWithState) -> hk.TransformedWithState:
        """The network, whose frozen layers normalise by their moving statistics in every pass."""
        if not self.statistics:
            return network

        def apply(params: Any, state: Any, *rest: Any) -> Any:
            layers = self.layers(params)

            def call(method: Any, args: Any, kwargs: Any, context: hk.MethodContext) -> Any:
                called = context.method_name == "__call__" and isinstance(context.module, hk.BatchNorm)
                if called and context.module.module_name in layers:
                    if len(args) > 1:  # (inputs, is_training, ...)
                        return method(args[0], False, *args[2:], **kwargs)
                    return method(*args, **{**kwargs, "is_training": False})
                return method(*args, **kwargs)

            with hk.intercept_methods(call):
                return network.apply(params, state, *rest)

        return hk.TransformedWithState(network.init, apply)


def check_frozen(spec: Spec, params: Mapping[str, Any], model_state: Mapping[str, Any]) -> None:
    """Raise SpecError where a pattern of `train.freeze` matches nothing, or all together match everything.

    Also where statistics are to be frozen, and no layer that has some is.
    """
    frozen = Frozen(spec.train.freeze, spec.train.freeze_statistics)
    names = [f"{module}/{name}" for module, arrays in params.items() for name in arrays]
    for pattern in frozen.patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise _matchless(spec, pattern, names)
    if names and all(map(frozen.matches, names)):
        raise at(spec, "train.freeze", f"freezes all {len(names)} parameters", "leave out those to train")
    if frozen.statistics and not any(
        has_statistics({module: None for module in model_state if module.startswith(f"{layer}/")})
        for layer in frozen.layers(params)
    ):
        got = "= True, but no layer with moving statistics has all of its parameters frozen"
        raise at(spec, "train.freeze_statistics", got, "delete it, or freeze such a layer as a whole")


def _matchless(spec: Spec, pattern: str, names: list[str]) -> SpecError:
    modules = dict.fromkeys(f"{name.rpartition('/')[0]}/*" for name in names)
    return at(spec, "train.freeze", f"{pattern!r} matches no parameter", suggest(pattern, [*modules, *names]))
