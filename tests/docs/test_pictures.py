"""What docs/regularizer.md says of its pictures holds, and the pictures are those of the script as it stands."""

import hashlib
import re

import jax
import numpy as np
import pytest

CURVATURES = [0.0, 0.15, 1.0]


@pytest.fixture(scope="module")
def pictures(docs):
    import pictures

    return pictures


def test_pictures_are_those_of_the_script(docs):
    made_by = f"made by docs/pictures.py, sha256 {hashlib.sha256((docs / 'pictures.py').read_bytes()).hexdigest()}"
    shown = re.findall(r"\]\((pictures/\w+\.svg)\)", (docs / "regularizer.md").read_text())
    assert sorted(shown) == sorted(f"pictures/{path.name}" for path in docs.glob("pictures/*"))
    for name in shown:
        assert made_by in (docs / name).read_text(), "run: python docs/pictures.py"


def test_the_bound_holds(pictures):
    deltas = jax.random.uniform(jax.random.key(1), (500, 1, 2, 1), minval=-0.1, maxval=0.1)
    for c in CURVATURES:
        g, slope, change = pictures.measured(c, deltas)
        assert np.all(change <= g + slope + 1e-6)
        assert np.isclose(change, g + slope, atol=1e-5).any()


def test_gamma_is_that_of_the_curvature(pictures):
    # max of |-1.2 a^2 + 0.9 b^2 - 0.6 a b| over [-1, 1]^2 is 1.3, at a = 1, b = 1/3
    found = pictures.measured(1.0, pictures.search([1.0] * 200, "local_linearity", 20))[0]
    np.testing.assert_allclose(found.max(), 0.65, atol=2e-3)
    two = pictures.measured(1.0, pictures.search([1.0] * 200, "local_linearity", 2))[0]
    np.testing.assert_allclose([two.mean(), found.mean()], [0.47, 0.58], atol=0.02)
    np.testing.assert_allclose(pictures.gammas(CURVATURES), [0.65 * c for c in CURVATURES], atol=1e-3)


def test_few_steps_suffice_where_the_loss_is_nearly_linear(pictures):
    shares = {steps: pictures.shares_found(CURVATURES, steps) for steps in (1, 2, 20)}
    np.testing.assert_allclose(shares[1], [1, 1, 0.42], atol=0.005)
    np.testing.assert_allclose(shares[2], [1, 1, 0.85], atol=0.006)
    np.testing.assert_allclose(shares[20], [1, 1, 0.999], atol=0.001)
