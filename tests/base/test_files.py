"""The lock of a folder."""

import errno
import fcntl
import os
import threading
from pathlib import Path

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


def test_a_full_disk_is_told_as_one_where_a_lock_cannot_be_made(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), sole_owner(tmp_path, "process"):
        pass
