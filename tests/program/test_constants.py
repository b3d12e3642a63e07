"""Numbers of models and augmentations are compiled in: two values must never share a program."""

from typing import Annotated

import llrflow
from llrflow.components.fields import Traced
from llrflow.components.registry import Component, register


@register("augmentation", "dim_of_a_test")
class Dim(Component):
    """Darker images."""

    by: Annotated[float, Traced()] = 1.0

    def __call__(self, image, key):
        return image * self.by


def test_a_traced_number_outside_the_step_inputs_is_part_of_the_program(tiny):
    def compiled(by):
        spec = tiny()
        spec["data"]["augment"] = {"dim": {"type": "dim_of_a_test", "by": by}}
        return llrflow.compile(llrflow.load_spec(spec))._compiled

    assert compiled(0.4) is compiled(0.4)
    assert compiled(0.4) is not compiled(1.0)
