import pytest
from pydantic import TypeAdapter, ValidationError

from llrflow.base.memory_size import Bytes, amount

BYTES = TypeAdapter(Bytes)


@pytest.mark.parametrize(
    ("written", "size"),
    [("4GiB", 2**32), ("4 GiB", 2**32), ("1.5 MiB", 3 * 2**19), ("500 MB", 500_000_000), ("2 TB", 2 * 10**12), (7, 7)],
)
def test_amounts_are_bytes(written, size):
    assert BYTES.validate_python(written) == size


@pytest.mark.parametrize(
    "written",
    ["4", "4 gib", "4  GiB", "GiB", "-1 GiB", "0 GiB", "1e3 MB", "1,5 GB", " 1 GB", "1 KB", 0, -5, True, 1.5, None],
)
def test_anything_else_is_refused(written):
    with pytest.raises(ValidationError, match="no amount of memory; write `2 GiB`"):
        BYTES.validate_python(written)


@pytest.mark.parametrize(
    ("size", "text"), [(12, "12 bytes"), (2**20, "1 MiB"), (1.5 * 2**30, "1.5 GiB"), (192_849_000_000, "180 GiB")]
)
def test_bytes_are_written_as_amounts(size, text):
    assert amount(size) == text
