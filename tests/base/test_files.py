"""The lock of a folder."""

import fcntl
import threading

import pytest

from llrflow.base.errors import SpecError
from llrflow.base.files import has_owner, sole_owner


def test_looking_at_a_folder_does_not_keep_a_process_out(tmp_path):
    with sole_owner(tmp_path, "process"):
        assert has_owner(tmp_path)
    look = (tmp_path / ".lock").open("rb")
    fcntl.flock(look, fcntl.LOCK_SH)  # as has_owner does, only longer
    end = threading.Timer(0.12, look.close)
    end.start()
    with sole_owner(tmp_path, "process"):
        assert look.closed and has_owner(tmp_path)
        with pytest.raises(SpecError, match="is in use by another sweep"), sole_owner(tmp_path, "sweep"):
            pass
    end.join()
    assert not has_owner(tmp_path)
