import numpy as np
import pytest

from llrflow.base.errors import DataError
from llrflow.data.batches import batch_ids, epoch_order, padded_chunks, steps_per_epoch


def test_every_epoch_is_another_permutation():
    orders = [epoch_order(seed, epoch, 100) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert all((np.sort(order) == np.arange(100)).all() for order in orders)
    assert len({order.tobytes() for order in orders}) == 6


def test_the_order_is_pinned():
    # A change here changes the numbers of every run: it needs a changelog entry that says so.
    assert epoch_order(0, 0, 8).tolist() == [3, 1, 7, 5, 4, 0, 2, 6]


@pytest.mark.parametrize(("n", "batch"), [(10, 3), (12, 4), (5, 5)])
def test_batches_cut_each_epoch_without_overlap(n, batch):
    per_epoch = steps_per_epoch(n, batch)
    assert per_epoch == n // batch
    for epoch in range(3):
        ids = np.concatenate([batch_ids(7, epoch * per_epoch + step, n, batch) for step in range(per_epoch)])
        assert (ids == epoch_order(7, epoch, n)[: per_epoch * batch]).all()


def test_a_resumed_run_continues_as_the_unbroken_one():
    unbroken = [batch_ids(3, step, 50, 8).tolist() for step in range(40)]
    epoch_order.cache_clear()
    assert [batch_ids(3, step, 50, 8).tolist() for step in range(17, 40)] == unbroken[17:]


def test_the_cached_order_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        batch_ids(0, 0, 10, 5)[0] = 3


def test_more_than_all_examples_in_a_batch_is_refused():
    with pytest.raises(DataError, match=r"train\.batch_size: 11 is more than the 10 training examples; use at most 10"):
        batch_ids(0, 0, 10, 11)


@pytest.mark.parametrize(("n", "size", "chunks"), [(10, 4, 3), (8, 4, 2), (1, 4, 1), (0, 4, 0)])
def test_padded_chunks_cover_every_id_once(n, size, chunks):
    ids = np.arange(100, 100 + n)
    cut = list(padded_chunks(ids, size))
    assert len(cut) == chunks
    assert all(chunk.shape == mask.shape == (size,) for chunk, mask in cut)
    assert [i for chunk, mask in cut for i in chunk[mask]] == ids.tolist()
    assert all((chunk[~mask] == chunk[0]).all() for chunk, mask in cut)
