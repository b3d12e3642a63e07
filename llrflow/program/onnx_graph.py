"""A traced network as an ONNX graph: each JAX primitive becomes a few operators, and what is constant is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax.extend.core import ClosedJaxpr, Literal

OPSET, IR = 18, 9
"""Of ONNX 1.14 and onnxruntime 1.15 (2023), so that not only the newest can read it."""

_FAR = np.iinfo(np.int64).max

_SAME = {
    "abs": "Abs", "add": "Add", "add_any": "Add", "and": "And", "cos": "Cos", "div": "Div", "eq": "Equal",
    "erf": "Erf", "exp": "Exp", "floor": "Floor", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual",
    "log": "Log", "logistic": "Sigmoid", "lt": "Less", "max": "Max", "min": "Min", "mul": "Mul", "neg": "Neg",
    "not": "Not", "or": "Or", "pow": "Pow", "sign": "Sign", "sin": "Sin", "sqrt": "Sqrt", "sub": "Sub", "tanh": "Tanh",
}  # fmt: skip
"""Primitives that are one operator on the same operands."""

_NOTHING = ("copy", "optimization_barrier", "reduce_precision", "stop_gradient")


class NoRule(Exception):
    """A network computes what has no operators here."""


def onnx_model(logits: Callable[..., jax.Array], weights: Mapping[str, np.ndarray], image_shape: Sequence[int]) -> Any:
    """The onnx.ModelProto of a function (weights by name, images [b,H,W,C]) -> logits [b,K], for any b; float32.

    The weights are its initializers, by their names where they are used as they are. Raises NoRule naming what it
    computes that has no operators here. Needs the package onnx.
    """
    import onnx  # pyright: ignore[reportMissingImports]

    images = jax.ShapeDtypeStruct((*jax_export.symbolic_shape("b"), *image_shape), jnp.float32)
    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.items()}
    traced = jax.make_jaxpr(logits)(shapes, images)
    graph = _Graph(onnx)
    for name in weights:
        graph.names[id(weights[name])] = name
    given = [weights[name] for name in sorted(weights)]  # as JAX orders a mapping
    (made,) = graph.run(traced.jaxpr, traced.consts, [*given, "images"])
    graph.add("Identity", [made], name="logits")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    ends = (("images", ["batch", *image_shape]), ("logits", ["batch", *traced.out_avals[0].shape[1:]]))
    inputs, outputs = ([helper.make_tensor_value_info(name, floats, shape)] for name, shape in ends)
    body = helper.make_graph(graph.nodes, "llrflow", inputs, outputs, list(graph.tensors.values()))
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)


Value = str | np.ndarray
"""The name of a tensor that depends on the images, or a constant."""


class _Graph:
    """Nodes and initializers of an ONNX graph under construction."""

    def __init__(self, onnx: Any) -> None:
        self.onnx, self.nodes, self.tensors = onnx, [], {}
        self.names: dict[int, str] = {}
        """Of constants, by their identity."""
        self._kept: list[np.ndarray] = []  # so that no identity is given twice
        self._batch: str | None = None

    def run(self, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
        """Add what a jaxpr computes of its arguments; what it returns."""
        values: dict[Any, Value] = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
        values.update(zip(jaxpr.invars, arguments, strict=True))

        def read(atom: Any) -> Value:
            if isinstance(atom, Literal):
                return np.asarray(atom.val, atom.aval.dtype)  # pyright: ignore[reportAttributeAccessIssue]
            return values[atom]

        for equation in jaxpr.eqns:
            made = self._equation(equation, [read(atom) for atom in equation.invars])
            values.update(zip(equation.outvars, made, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def add(self, operator: str, operands: Sequence[Value], name: str | None = None, **attributes: Any) -> str:
        """Add a node; the name of what it makes."""
        name = name or f"{operator}_{len(self.nodes)}"
        inputs = [self._named(operand) for operand in operands]
        self.nodes.append(self.onnx.helper.make_node(operator, inputs, [name], **attributes))
        return name

    def _named(self, value: Value) -> str:
        if isinstance(value, str):
            return value
        name = self.names.setdefault(id(value), f"constant_{len(self.tensors)}")
        if name not in self.tensors:
            self._kept.append(value)
            self.tensors[name] = self.onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def _equation(self, equation: Any, operands: list[Value]) -> list[Value]:
        name, params = equation.primitive.name, equation.params
        inner = next((params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params), None)
        if inner is not None and name not in ("while", "scan"):
            closed = isinstance(inner, ClosedJaxpr)
            return self.run(inner.jaxpr if closed else inner, inner.consts if closed else (), operands)
        if name in _NOTHING:
            return operands
        constant = all(isinstance(operand, np.ndarray) for operand in operands)
        if constant and all(_is_fixed(out.aval.shape) for out in equation.outvars):
            with jax.ensure_compile_time_eval():
                found = equation.primitive.bind(*operands, **params)
            return [np.asarray(one) for one in (found if equation.primitive.multiple_results else [found])]
        if name in _SAME:
            return [self.add(_SAME[name], operands)]
        rule = getattr(self, f"_{name}", None)
        if rule is None:
            raise NoRule(f"{name}, for which there is no rule")
        made = rule(*operands, equation=equation, **params)
        return made if isinstance(made, list) else [made]

    # What follows is a rule each, by the name of its primitive: operands, and the primitive's parameters.

    def _square(self, x: Value, **_: Any) -> str:
        return self.add("Mul", [x, x])

    def _integer_pow(self, x: Value, y: int, **_: Any) -> str:
        return self.add("Pow", [x, np.asarray(y, np.float32)])

    def _rsqrt(self, x: Value, **_: Any) -> str:
        return self.add("Reciprocal", [self.add("Sqrt", [x])])

    def _log1p(self, x: Value, **_: Any) -> str:
        return self.add("Log", [self.add("Add", [x, np.asarray(1, np.float32)])])

    def _expm1(self, x: Value, **_: Any) -> str:
        return self.add("Sub", [self.add("Exp", [x]), np.asarray(1, np.float32)])

    def _erfc(self, x: Value, **_: Any) -> str:
        return self.add("Sub", [np.asarray(1, np.float32), self.add("Erf", [x])])

    def _ne(self, x: Value, y: Value, **_: Any) -> str:
        return self.add("Not", [self.add("Equal", [x, y])])

    def _clamp(self, low: Value, x: Value, high: Value, **_: Any) -> str:
        return self.add("Min", [self.add("Max", [x, low]), high])

    def _select_n(self, which: Value, *cases: Value, equation: Any, **_: Any) -> str:
        if len(cases) != 2 or equation.invars[0].aval.dtype != bool:
            raise NoRule(f"select_n of {len(cases)} cases")
        return self.add("Where", [which, cases[1], cases[0]])

    def _convert_element_type(self, x: Value, new_dtype: Any, **_: Any) -> str:
        return self.add("Cast", [x], to=self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(new_dtype)))

    def _transpose(self, x: Value, permutation: Sequence[int], **_: Any) -> Value:
        return self._turned(x, permutation)

    def _reshape(self, x: Value, equation: Any, **_: Any) -> str:
        return self._shaped(x, equation.outvars[0].aval.shape)

    _squeeze = _reshape

    def _broadcast_in_dim(self, x: Value, *_shape: Value, equation: Any, broadcast_dimensions: Any, **_: Any) -> Value:
        (operand, *_more), shape = equation.invars, equation.outvars[0].aval.shape
        filled: list[Any] = [1] * len(shape)
        for axis, size in zip(broadcast_dimensions, operand.aval.shape, strict=True):
            filled[axis] = size
        if tuple(filled) != tuple(operand.aval.shape):
            x = x.reshape(filled) if isinstance(x, np.ndarray) else self._shaped(x, filled)
        if filled == list(shape):
            return x
        wanted = [1 if here == there else there for here, there in zip(filled, shape, strict=True)]
        return self.add("Expand", [x, self._sizes(wanted)])

    def _concatenate(self, *parts: Value, dimension: int, **_: Any) -> str:
        return self.add("Concat", parts, axis=int(dimension))

    def _slice(self, x: Value, start_indices: Any, limit_indices: Any, strides: Any, **_: Any) -> str:
        ends = [limit if isinstance(limit, int) else _FAR for limit in limit_indices]
        axes = range(len(ends))
        return self.add("Slice", [x, *map(_whole, (start_indices, ends, axes, strides or [1] * len(ends)))])

    def _split(self, x: Value, sizes: Sequence[int], axis: int, **_: Any) -> list[Value]:
        ends = np.cumsum(sizes)
        return [
            self.add("Slice", [x, _whole([end - size]), _whole([end]), _whole([axis])])
            for size, end in zip(sizes, ends, strict=True)
        ]

    def _pad(self, x: Value, value: Value, padding_config: Any, **_: Any) -> str:
        low, high, inner = zip(*padding_config, strict=True)
        if any(inner):
            raise NoRule("padding between the pixels")
        return self.add("Pad", [x, _whole([*low, *high]), value])

    def _reduce_sum(self, x: Value, axes: Sequence[int], **_: Any) -> str:
        return self.add("ReduceSum", [x, _whole(axes)], keepdims=0)

    def _reduce_max(self, x: Value, axes: Sequence[int], **_: Any) -> str:
        return self.add("ReduceMax", [x, _whole(axes)], keepdims=0)

    def _reduce_min(self, x: Value, axes: Sequence[int], **_: Any) -> str:
        return self.add("ReduceMin", [x, _whole(axes)], keepdims=0)

    def _dot_general(self, x: Value, y: Value, dimension_numbers: Any, equation: Any, **_: Any) -> str:
        (of_x, of_y), (batch_x, batch_y) = dimension_numbers
        ranks = [atom.aval.ndim for atom in equation.invars]
        if ranks[1] == 2 and tuple(of_x) == (ranks[0] - 1,) and tuple(of_y) == (0,):
            return self.add("MatMul", [x, y])
        letters = iter("abcdefghijklmnopqrstuvwxyz")
        left, right = ([""] * rank for rank in ranks)
        for axis_x, axis_y in zip((*batch_x, *of_x), (*batch_y, *of_y), strict=True):
            left[axis_x] = right[axis_y] = next(letters)
        shared = "".join(left[axis] for axis in batch_x)
        free = [[axis for axis, letter in enumerate(side) if not letter] for side in (left, right)]
        for side, axes in zip((left, right), free, strict=True):
            for axis in axes:
                side[axis] = next(letters)
        out = shared + "".join(side[axis] for side, axes in zip((left, right), free, strict=True) for axis in axes)
        return self.add("Einsum", [x, y], equation=f"{''.join(left)},{''.join(right)}->{out}")

    def _conv_general_dilated(self, x: Value, w: Value, dimension_numbers: Any, **params: Any) -> Value:
        plain = params["batch_group_count"] == 1 and set(params["lhs_dilation"]) == {1}
        low, high = zip(*params["padding"], strict=True)
        if not plain or min(*low, *high) < 0:
            raise NoRule("a convolution that is transposed, grouped by examples or cuts its images")
        made = self.add(
            "Conv",
            [self._turned(x, dimension_numbers.lhs_spec), self._turned(w, dimension_numbers.rhs_spec)],
            strides=list(map(int, params["window_strides"])),
            pads=list(map(int, (*low, *high))),
            dilations=list(map(int, params["rhs_dilation"])),
            group=int(params["feature_group_count"]),
        )
        return self._turned(made, np.argsort(dimension_numbers.out_spec))

    def _reduce_window_max(self, x: Value, equation: Any, **params: Any) -> Value:
        return self._window(x, "MaxPool", equation, **params)

    def _reduce_window_sum(self, x: Value, equation: Any, **params: Any) -> Value:
        mean = self._window(x, "AveragePool", equation, count_include_pad=1, **params)
        return self.add("Mul", [mean, np.asarray(math.prod(params["window_dimensions"]), np.float32)])

    def _window(
        self, x: Value, operator: str, equation: Any, window_dimensions: Any, window_strides: Any, padding: Any,
        base_dilation: Any, window_dilation: Any, **attributes: Any,
    ) -> Value:  # fmt: skip
        """A pooling of whatever axes its window has: they are put last, and all others are images of one channel."""
        if {*base_dilation, *window_dilation} != {1}:
            raise NoRule("a dilated pooling")
        axes = range(len(window_dimensions))
        moved = [a for a in axes if window_dimensions[a] > 1 or window_strides[a] > 1 or any(padding[a])]
        order = [a for a in axes if a not in moved] + moved
        shape, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
        images = self._shaped(self._turned(x, order), [-1, 1, *(shape[a] for a in moved)])
        pads = [padding[a][end] for end in (0, 1) for a in moved]
        kernel, strides = ([int(of[a]) for a in moved] for of in (window_dimensions, window_strides))
        made = self.add(operator, [images], kernel_shape=kernel, strides=strides, pads=pads, **attributes)
        return self._turned(self._shaped(made, [out[a] for a in order]), np.argsort(order))

    def _turned(self, x: Value, order: Any) -> Value:
        """The axes in another order."""
        order = [int(axis) for axis in order]
        if order == sorted(order):
            return x
        return np.transpose(x, order) if isinstance(x, np.ndarray) else self.add("Transpose", [x], perm=order)

    def _shaped(self, x: Value, shape: Sequence[Any]) -> str:
        return self.add("Reshape", [x, self._sizes(shape)])

    def _sizes(self, shape: Sequence[Any]) -> Value:
        """A shape as a tensor; the size of the batch is known when the graph runs."""
        if _is_fixed(shape):
            return _whole(shape)
        if self._batch is None:
            self._batch = self.add("Shape", ["images"], start=0, end=1)
        sizes = []
        for size in shape:
            if not isinstance(size, (int, np.integer)) and str(size) != "b":
                raise NoRule(f"arrays of {size} rows for b images")
            sizes.append(_whole([size]) if isinstance(size, (int, np.integer)) else self._batch)
        return self.add("Concat", sizes, axis=0)


def _is_fixed(shape: Sequence[Any]) -> bool:
    return all(isinstance(size, (int, np.integer)) for size in shape)


def _whole(numbers: Any) -> np.ndarray:
    return np.array([int(number) for number in numbers], np.int64)
