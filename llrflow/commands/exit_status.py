"""How a command ends: its exit status, and one line about what went wrong."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import click

from llrflow.base.errors import InputError, LlrflowError
from llrflow.base.files import no_room
from llrflow.commands.printing import echo

PATHS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
    errno.ELOOP, errno.EINVAL,
}  # fmt: skip
"""What the system says of a path that should have been chosen otherwise; a full or broken disk is no wrong input."""


@contextmanager
def exit_status(verbose: bool) -> Iterator[None]:
    """End with the exit status of whatever the block raises on purpose, and a line about it."""
    try:
        yield
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):  # click makes the one of the other
        echo("stopped", err=True)
        sys.exit(130)
    except LlrflowError as error:
        if verbose:
            traceback.print_exception(error)
        label = "error: " if isinstance(error, InputError) or error.exit_code == 1 else ""
        echo(f"{label}{' '.join(str(error).split())}", err=True)
        sys.exit(error.exit_code)
    except Exception as error:
        path = getattr(error, "filename", None)
        if full := no_room(error):
            if verbose:
                traceback.print_exception(error)
            place = "" if path is None else f"{os.fsdecode(path)}: "
            echo(f"error: {place}{full}; make room, and run the same command again", err=True)
            sys.exit(1)
        if not isinstance(error, OSError) or path is None or error.errno not in PATHS:
            raise
        if verbose:
            traceback.print_exception(error)
        echo(f"error: {os.fsdecode(path)}: {error.strerror}", err=True)
        sys.exit(2)
