"""Names of the norms, and what they are to NumPy."""

import math
from typing import Literal

NormName = Literal["linf", "l2", "l1"]

ORDERS: dict[NormName, float] = {"linf": math.inf, "l2": 2, "l1": 1}
"""p, as `numpy.linalg.norm` takes it."""
