"""Reference values and closed forms in float64, which JAX enables per process."""

import os
import pathlib
import re
import subprocess
import sys


def test_reference_values_and_closed_forms_in_float64():
    tests = pathlib.Path(__file__).parents[1]
    names = ("method/test_reference_values.py", "method/test_closed_forms.py", "program/test_exactness.py")
    files = [str(tests / name) for name in names]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-k",
            "not (penalises or relative or normal or refused)",
            *files,
        ],
        env=os.environ | {"JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r"\d{2,} passed", done.stdout) and "skipped" not in done.stdout
