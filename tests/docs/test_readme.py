"""The spec that README.md shows is the quickstart's, and the table is what it prints for the accuracies it names."""

import re
import textwrap

import numpy as np
import yaml

import llrflow
from llrflow.runs.summaries import proportion


def test_the_spec_shown_is_that_of_the_quickstart(repository):
    text = (repository / "README.md").read_text()
    block = re.search(r"^## A spec\n((?:    .*\n)+)", text, re.MULTILINE)[1]
    shown = llrflow.load_spec(yaml.safe_load(textwrap.dedent(block))).model_dump()
    ran = llrflow.load_spec(repository / "specs" / "quickstart.yaml").model_dump()
    del shown["evaluate"]["batch_size"], ran["evaluate"]["batch_size"]  # which changes no number
    assert shown == ran


def test_figures_agree_in_readme_and_spec(repository):
    text, spec = ((repository / path).read_text() for path in ("README.md", "specs/quickstart.yaml"))
    rows = re.findall(r"│ (\S.*?) +│ +([\d.]+)% │ ([\d.]+)% to ([\d.]+)% │", text)
    assert [name for name, *_ in rows] == ["nominal", "fgsm", "pgd", "worst case"]
    for _, accuracy, low, high in rows:
        share = proportion(np.arange(360) < round(3.6 * float(accuracy)))
        assert [f"{100 * value:.2f}" for value in (share.accuracy, *share.interval)] == [accuracy, low, high]
        assert f"{accuracy} %" in spec
    for time in (r"\d+ to \d+ s(?=;| in all)", r"\d min \d+ s"):
        assert re.search(time, text)[0] == re.search(time, spec)[0]
