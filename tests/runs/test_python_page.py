"""docs/python.md: its Python blocks run, in their order, on the tiny run."""

import re
import shutil

import pytest


def test_the_page_does_what_it_says(repository, finished, tmp_path, monkeypatch):
    pytest.importorskip("foolbox")
    page = (repository / "docs/python.md").read_text()
    shutil.copytree(finished, tmp_path / re.search(r"llrflow run specs/quickstart\.yaml --out (\S+)", page)[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    blocks, names = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL), {}
    assert len(blocks) >= 9
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/python.md, block {number}", "exec"), names)
    assert 0 < names["robust"] <= names["nominal"] < 1 and 0 < names["kept"] < names["nominal"]
    assert len(names["figure"].axes) == 2
    names["plt"].close("all")
    test = names["difference"]["evaluations"][0]["results"]["pgd"]["mcnemar"]
    assert 0 < test["p_value"] <= 1 and names["program"].platforms == ("cpu", "cuda", "tpu")
