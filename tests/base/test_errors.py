"""What is told of errors that others raise: one line that ends with a word, and the place in a plugin that it is of."""

import jax
import jax.numpy as jnp
import pytest

from llrflow.base.errors import line_of, shortened
from llrflow.components.calls import raised_at


def test_no_word_is_cut():
    words = "many words " * 30
    assert shortened("short") == "short" and shortened("x" * 200) == "x" * 200
    cut = line_of(ValueError(f"{words}\nsecond line"))
    assert cut.endswith((" many ...", " words ...")) and 190 < len(cut) <= 204
    assert shortened("x" * 300) == "x" * 200 + " ..."
    assert line_of(ValueError()) == "ValueError" and line_of(ValueError("\n  one\ntwo")) == "one"


def test_an_error_in_a_callback_is_told_as_its_own(capfd):
    def fails(x):
        raise ValueError("in the callback")

    line = fails.__code__.co_firstlineno + 1
    with pytest.raises(Exception, match="Traceback") as caught:
        jax.jit(lambda x: jax.pure_callback(fails, jax.ShapeDtypeStruct((), x.dtype), x))(
            jnp.ones(())
        ).block_until_ready()
    assert line_of(caught.value) == "ValueError: in the callback"
    assert raised_at(caught.value, {__file__}) == f" at {__file__}:{line}" and raised_at(caught.value, {"x.py"}) == ""
    capfd.readouterr()  # JAX has logged it
