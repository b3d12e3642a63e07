"""What the training loop does while a step computes: it places batches, and waits for nothing it does not need."""

import pytest

import llrflow
from llrflow.data.pipelines import open_split
from llrflow.program.group import Group
from llrflow.runs.interrupt import StopRequest
from llrflow.runs.train import AHEAD, Trainer, ahead


@pytest.mark.parametrize("count", [0, 1, AHEAD, 7])
def test_a_few_are_made_before_they_are_needed_and_none_is_lost(count):
    made = []
    handed = ahead(made.append(number) or number for number in range(count))
    for number, found in enumerate(handed):
        assert found == number and len(made) == min(count, number + 1 + AHEAD)
    assert made == [*range(count)]


def test_metrics_are_fetched_while_the_next_step_computes(load, monkeypatch):
    program = llrflow.compile(load({"train.steps": 8, "train.log_every": 3, "checkpoint.every": 5}))
    events, (place, advance, fetch) = [], (program.place, program.advance, program.devices.fetch)

    def fetched(tree):
        if isinstance(tree, list) and tree:  # metrics of some steps
            events.append(f"fetch {len(tree)}")
        return fetch(tree)

    def placed(batch, step):
        events.append(f"place {step}")
        return place(batch, step)

    def advanced(state, placed):
        events.append("step")
        return advance(state, placed)

    monkeypatch.setattr(program, "place", placed)
    monkeypatch.setattr(program, "advance", advanced)
    monkeypatch.setattr(program.devices, "fetch", fetched)
    split = open_split(program.spec.data, "train", 0)
    Trainer(program, Group(program.devices), split, None, quiet=True).train(program.init(), StopRequest())
    assert " ".join(event for event in events if not event.startswith("place")) == (
        "step step step step fetch 3 "  # step 3 is logged once step 4 has begun
        "step fetch 2 "  # a checkpoint needs all
        "step step fetch 1 "  # step 6, while step 7 computes
        "step fetch 2"
    )
    for step in range(8):  # each batch is placed before the steps that come before its own
        begun = [event for event in events[: events.index(f"place {step}")] if event == "step"]
        assert len(begun) == max(0, step - AHEAD)
