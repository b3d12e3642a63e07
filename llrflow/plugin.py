"""The door for plugin authors: whatever a plugin needs of llrflow, under names that stay where they are.

What each is for is told by the page on plugins (docs/plugins.md).
"""

from llrflow.attacks.base import Attack
from llrflow.attacks.gradient import GradientAttack
from llrflow.components.fields import Chosen, Traced
from llrflow.components.parameters import weights_of
from llrflow.components.registry import Component, register
from llrflow.data.datasets import Known
from llrflow.method.ascent import gradient_over_draws
from llrflow.method.labels import at_label, cross_entropy, largest_other
from llrflow.method.parameter_gradient import Gradient
from llrflow.method.probe import Probe
from llrflow.method.term import Answer
from llrflow.method.terms.gradient import norm
from llrflow.method.threat import Threat, unit
from llrflow.models.network import Logits, Network
from llrflow.models.repeated import repeated

__all__ = [
    "Answer",
    "Attack",
    "Chosen",
    "Component",
    "Gradient",
    "GradientAttack",
    "Known",
    "Logits",
    "Network",
    "Probe",
    "Threat",
    "Traced",
    "at_label",
    "cross_entropy",
    "gradient_over_draws",
    "largest_other",
    "norm",
    "register",
    "repeated",
    "unit",
    "weights_of",
]
