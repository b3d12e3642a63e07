"""What a step costs: what `llrflow plan` counts, and the convolutions that the lowered step really makes.

Of a net of L convolutions a pass is L of them, and so is an input gradient. Its derivative for the parameters is
2L - 1: the first layer needs no derivative for its input. A directional derivative is L, and 2L - 1 more when it is
differentiated.
"""

import pytest

import llrflow
from llrflow.program.cost import CROSS_ENTROPY, Count, parts, probes_of, warnings_of

PGD = {"p": {"steps": 7}}
AT_PGD = {"type": "cross_entropy", "at": "p"}
GRADIENT_NORM = {"type": "gradient_norm"}
TRADES = {
    "perturbations": {"p": {"maximize": "kl_divergence", "steps": 10, "start": "gaussian"}},
    "terms": {"kl": {"type": "kl_divergence", "at": "p"}},
}
# Clean pass, its gradient for search and slope, the derivative of what is made of that, and the perturbed pass;
# 3 derivatives end at the first layer.
LLR = Count(forward=2, backward=7, derivative=1)
SLOPE = Count(backward=2, derivative=1)


def llr(steps, **terms):
    places = {"gamma": {"type": "local_linearity", "at": "p"}, "slope": {"type": "gradient_inner_product", "at": "p"}}
    return {
        "perturbations": {"p": {"maximize": "local_linearity", "steps": steps}},
        "terms": {**places, **terms},
    }


def choice(take):
    short = {"steps": 3, "norm": "l2", "epsilon": 0.5}
    return {"perturbations": {**PGD, "short": short}, "choices": {"any": {"of": ["p", "short"], "take": take}}}


# name: (objective, what it counts in all, derivatives that end at the first layer)
OBJECTIVES = {
    "cross-entropy": ({}, Count(1, 2), 1),
    "llr-1": (llr(1), LLR.plus(Count(1, 1)), 3),
    "llr-2": (llr(2), LLR.plus(Count(2, 2)), 3),
    "llr-5": (llr(5), LLR.plus(Count(5, 5)), 3),
    "llr-2 and gradient norm": (llr(2, norm=GRADIENT_NORM), LLR.plus(Count(2, 2)), 3),
    "llr-2 and gradient norm at the perturbation": (
        llr(2, norm={**GRADIENT_NORM, "at": "p"}),
        LLR.plus(Count(2, 2)).plus(SLOPE).plus(Count(backward=1)),
        4,
    ),
    "gradient norm": ({"terms": {"norm": GRADIENT_NORM}}, Count(1, 5, 1), 2),
    "curvature": ({"terms": {"curvature": {"type": "curvature"}}}, Count(2, 10, 2), 4),
    "pgd-7": ({"loss": AT_PGD, "perturbations": PGD}, Count(8, 9), 1),
    "strongest of pgd-7 and pgd-3": (
        {"loss": {"type": "cross_entropy", "at": "any"}, **choice("strongest")},
        Count(forward=13, backward=12),
        1,
    ),
    "drawn of pgd-7 and pgd-3": (
        {"loss": {"type": "cross_entropy", "at": "any"}, **choice("drawn")},
        Count(forward=8, backward=9),
        1,
    ),
    "best of pgd-7": (
        {"loss": AT_PGD, "perturbations": {"p": {"steps": 7, "keep": "best"}}},
        Count(9, 9),
        1,
    ),
    "best of two pgd-2": (
        {"loss": AT_PGD, "perturbations": {"p": {"steps": 2, "restarts": 2}}},
        Count(4 + 2 + 1, 4 + 2),
        1,
    ),
    "noise": ({"loss": AT_PGD, "perturbations": {"p": {"steps": 0}}}, Count(1, 2), 1),
    "trades-10": (TRADES, Count(10 + 2, 10 + 4), 2),
}
TOTALS = {
    "cross-entropy": CROSS_ENTROPY,
    "llr-1": 12,
    "llr-2": 14,
    "llr-5": 20,
    "gradient norm": 7,
    "curvature": 14,
    "pgd-7": 17,
    "trades-10": 26,
}


@pytest.fixture
def program(tiny):
    """program(objective, layers, changes) -> the compiled program of a net of that many convolutions."""

    def make(objective, layers=2, changes=None):
        model = {"type": "cnn", "channels": [2] * layers, "dense": 0}
        return llrflow.compile(llrflow.load_spec({**tiny(), "model": model, "objective": objective}, changes or {}))

    return make


def counted(program):
    total = Count()
    for count in parts(program).values():
        total = total.plus(count)
    return total


def asked(probes):
    return [(list(probe.passes.values()), probe.searches) for probe in probes]


def convolutions(program):
    return program.lowered_step().as_text().count("stablehlo.convolution")


@pytest.mark.parametrize(("objective", "count", "ends"), OBJECTIVES.values(), ids=OBJECTIVES)
def test_the_count_is_what_the_step_computes(objective, count, ends, program):
    made = program(objective)
    assert counted(made) == count
    assert asked(made.probes()) == asked(probes_of(made)) != []
    assert convolutions(made) == 2 * count.total - ends


def test_totals_of_known_methods():
    assert {name: OBJECTIVES[name][1].total for name in TOTALS} == TOTALS
    assert [OBJECTIVES[f"llr-{steps}"][1].total for steps in (1, 2, 5)] == [2 * steps + 10 for steps in (1, 2, 5)]


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("layers", [1, 3])
def test_convolutions_of_llr(steps, layers, program):
    plain, ours = program({}, layers), program(llr(steps), layers)
    more = program(llr(steps, norm=GRADIENT_NORM), layers)
    assert convolutions(plain) == 3 * layers - 1
    assert convolutions(ours) == (2 * steps + 10) * layers - 3
    # One directional derivative along whatever comes back for the gradient: neither a second one nor a clean pass.
    assert convolutions(more) == convolutions(ours)


@pytest.mark.parametrize(
    ("maximize", "step"),
    [
        ("gradient_norm", Count(1, 3, 1)),
        ("curvature", Count(2, 6, 2)),
        ("gradient_inner_product", Count()),
        ("kl_divergence", Count(1, 1)),
    ],
)
def test_a_search_costs_what_its_term_asks(maximize, step, program):
    made = program({"loss": AT_PGD, "perturbations": {"p": {"maximize": maximize, "steps": 2}}}, layers=3)
    assert parts(made)["search p (2 steps)"] == step.times(2)
    # Reverse passes over a directional derivative end at the first layer too.
    assert convolutions(made) == pytest.approx(3 * counted(made).total, rel=0.08)


def test_parts_are_named_by_point_and_purpose(program):
    assert parts(program(llr(2))) == {
        "search p (2 steps)": Count(2, 2),
        "pass, clean": Count(1, 2),
        "input gradient, clean": Count(0, 1),
        "directional derivative, clean": Count(0, 2, 1),
        "pass, p": Count(1, 2),
    }


def test_parts_of_a_term_that_chooses_its_own_point(program):
    found = parts(program({"terms": {"curvature": {"type": "curvature"}}}))
    for what in ("pass", "input gradient", "directional derivative"):
        assert found[f"{what}, clean"] == found[f"{what}, elsewhere"]
    assert len(found) == 6


@pytest.mark.parametrize(
    ("policy", "more", "ends", "part"),
    [
        ({}, Count(), 3, None),
        ({"terms": "clean"}, Count(), 3, None),  # the loss stands at the clean images, and shares their pass
        ({"search": "moving"}, Count(1, 1), 3, "pass, clean, as searches see it"),
        ({"terms": "moving"}, Count(1, 2), 4, "pass, clean, as terms see it"),
    ],
    ids=str,
)
def test_who_sees_other_statistics_needs_a_clean_pass_of_its_own(policy, more, ends, part, program):
    made = program(llr(2), changes={"model.norm": "batch", "train.batch_norm": policy})
    assert counted(made) == LLR.plus(Count(2, 2)).plus(more)
    assert convolutions(made) == 2 * (14 + more.total) - ends
    assert {name for name in parts(made) if name.startswith("pass, clean,")} == ({part} if part else set())


@pytest.mark.parametrize(
    ("name", "once"),
    [
        ("best of two pgd-2", {"search p (2 steps, 2 restarts)"}),
        ("llr-1", {"search p (1 steps)"}),
    ],
)
def test_weight_perturbation_is_a_second_objective_without_its_search(name, once, program, repository):
    objective, count, ends = OBJECTIVES[name]
    changes = {"plugins": [str(repository / "plugins" / "awp" / "awp.py")], "objective.gradient": {"type": "awp"}}
    plain, awp = parts(program(objective)), program(objective, changes=changes)
    assert parts(awp) == {part: made if part in once else made.plus(made) for part, made in plain.items()}
    repeated = sum(made.total for part, made in plain.items() if part not in once)
    assert convolutions(awp) == 2 * (count.total + repeated) - 2 * ends


def test_counts_add_up_field_by_field():
    assert Count(1, 2, 3).plus(Count(10, 20, 30)) == Count(11, 22, 33)
    assert Count(1, 2, 3).total == 6


@pytest.mark.parametrize(
    ("norm", "terms", "told"), [("batch", "moving", 1), ("batch", "clean", 0), ("group", "moving", 0)]
)
def test_moving_statistics_in_terms_are_told(norm, terms, told, program):
    made = program(llr(2), changes={"model.norm": norm, "train.batch_norm": {"terms": terms}})
    found = warnings_of(made)
    assert len(found) == told and all("fine-tuning" in warning for warning in found)
