"""The page of the Python interface: the public names and what they return.

Docstrings are Markdown, so that sphinx.ext.autodoc, which reads reStructuredText, does not fit.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import typing
from collections.abc import Iterator
from typing import Any

import llrflow
from llrflow_docs.prose import fence, markdown

HEAD = """# Python

Everything public, made from signatures and docstrings. `import llrflow` imports neither JAX nor Ray; a name is imported
when it is first used. Images are [B,H,W,C] with pixels in [0, 1]."""


def python_page() -> dict[str, str]:
    """The page, by path below the reference."""
    public = {name: getattr(llrflow, name) for name in llrflow.__all__}
    answers = {cls for value in public.values() for cls in _returned(value)} - set(public.values())
    returned = {cls.__name__: cls for cls in answers}
    parts = [HEAD, "## Public names", *(_entry(f"llrflow.{name}", value) for name, value in sorted(public.items()))]
    parts += ["## What they return", *(_entry(name, cls) for name, cls in sorted(returned.items()))]
    return {"python.md": "\n\n".join(parts) + "\n"}


def _returned(value: Any) -> Iterator[type]:
    if inspect.isfunction(value):
        answer = typing.get_type_hints(value).get("return")
        if isinstance(answer, type) and answer.__module__.startswith("llrflow"):
            yield answer


def _entry(name: str, value: Any) -> str:
    """A function or class with its docstring, members and fields."""
    parts = [f"### {name}"]
    if inspect.isclass(value):
        # A spec is made by load_spec, and its fields have a page of their own.
        made_by_hand = not hasattr(value, "model_fields") and not issubclass(value, tuple)
        parts += [fence(_signature(name, value.__init__, method=True), "python")] if made_by_hand else []
        parts += [markdown(value.__doc__), *_members(value)]
    else:
        parts += [fence(_signature(name, value), "python"), markdown(value.__doc__)]
    return "\n\n".join(parts)


def _members(cls: type) -> Iterator[str]:
    """Public methods, properties and fields that are described."""
    described = _attribute_docs(cls)
    for name in () if hasattr(cls, "model_fields") else inspect.get_annotations(cls):
        if not name.startswith("_"):
            kind = inspect.get_annotations(cls)[name]
            yield f"**`.{name}: {kind}`** {markdown(described.get(name, ''))}".rstrip()
    for name, member in vars(cls).items():
        if name.startswith("_") or name in inspect.get_annotations(cls):
            continue
        if isinstance(member, property):
            yield f"**`.{name}`** {markdown(member.__doc__)}"
        elif inspect.isfunction(member) and member.__doc__ and member.__module__ == cls.__module__:
            yield f"**`.{_signature(name, member, method=True)}`**\n\n{markdown(member.__doc__)}"


def _attribute_docs(cls: type) -> dict[str, str]:
    """The strings below the annotated attributes of a class."""
    body = ast.parse(inspect.cleandoc("\n" + inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]
    return {
        line.target.id: text.value.value
        for line, text in itertools.pairwise(body)
        if isinstance(line, ast.AnnAssign)
        and isinstance(line.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def _signature(name: str, function: Any, method: bool = False) -> str:
    """As it is written, without `self`, `-> None` and the addresses of defaults that are functions."""
    signature = inspect.signature(function)
    parameters = []
    for parameter in list(signature.parameters.values())[1 if method else 0 :]:
        shown = parameter.replace(annotation=_AsWritten(parameter.annotation))
        if inspect.isfunction(parameter.default):
            shown = shown.replace(default=_AsWritten(parameter.default.__name__))
        parameters.append(shown)
    answer = signature.return_annotation
    answer = inspect.Signature.empty if answer in ("None", None) else _AsWritten(answer)
    return f"{name}{signature.replace(parameters=parameters, return_annotation=answer)}"


class _AsWritten(str):
    """Text that a signature shows without quotes: postponed annotations are text."""

    __repr__ = str.__str__
