"""The report: what stands on its page, in its tables and files, and what it says of what is not there."""

import base64
import csv
import html
import io
import json
import re
import shutil
import subprocess
import sys
import time
from xml.etree import ElementTree

import numpy as np
import pytest

from llrflow.report.gallery import data_uri, png
from llrflow.report.page import make_report, require_extra
from llrflow.report.pictures import Picture, axes, curves
from llrflow.report.read import read
from llrflow.report.sweeps import front
from llrflow.report.tables import Table, differing_paths, latex, leaves, markdown
from llrflow.runs.folder import RunFolder
from llrflow.runs.records import written


def plain(page):
    """A page's text."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def test_a_page_about_runs_has_their_numbers_pictures_and_differences(runs, command, tmp_path):
    code, out, err = command("report", *runs, "-o", tmp_path / "page.html", "--assets", tmp_path / "assets")
    assert code == 0 and "wrote" in out and "no study of strength, linearity, surface" in err
    page = (tmp_path / "page.html").read_text()
    record = RunFolder(runs[0]).evaluations()[12]
    for share in (record.nominal, *record.attacks.values(), record.worst_case):
        low, high = share.interval
        assert f"{share.accuracy:.2%} ({low * 100:.1f} to {high * 100:.1f})" in page
    text = plain(page)
    assert "objective.terms.gamma.weight 0.2 0.3" in text and "near" in text and "(published)" in text
    assert f"how accurate when every image may be changed by linf {record.epsilon}" in text
    for picture in (
        "accuracy against steps",
        "accuracy by radius, near",
        "linearity error",
        "loss around images, tiny",
    ):
        assert f'aria-label="{picture}"' in page
    assert page.count("data:image/png;base64") >= 2 * 8 * 3 and "mathdefault" not in page
    made = RunFolder(runs[0]).record()
    assert made.forward_equivalents == 2 * 2 + 10  # LLR with two search steps and the clean pass shared
    assert f"tiny 12 14 {1e3 * made.seconds['train'] / 12:.1f}" in text
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", page)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    for path in (tmp_path / "assets").glob("*.svg"):
        ElementTree.parse(path)
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
        assert list(csv.reader(io.StringIO(path.with_suffix(".csv").read_text())))[1]
    steps = list(csv.DictReader(io.StringIO((tmp_path / "assets" / "strength-steps.csv").read_text())))
    study = json.loads((runs[0] / "evaluation" / "12.strength.json").read_text())
    assert [(row["run"], int(row["steps"]), float(row["accuracy"])) for row in steps] == [
        ("tiny", point["steps"], point["accuracy"]) for point in study["steps"]
    ]
    curve = list(csv.DictReader(io.StringIO((tmp_path / "assets" / "training-objective.csv").read_text())))
    logged = [line["objective"] for line in RunFolder(runs[0]).metric_lines()]
    assert [float(row["objective (nats)"]) for row in curve if row["run"] == "tiny"] == logged


def test_ids_of_a_pages_pictures_are_unique_and_all_that_is_referred_to_is_there(runs, swept, command, tmp_path):
    assert command("report", runs[0], runs[1], swept, "-o", tmp_path / "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', page)) <= set(ids)


def test_the_best_is_named_with_whether_the_intervals_tell_it_apart(runs, rewrite):
    path = runs[1] / "evaluation" / "12.json"
    record = json.loads(path.read_text())
    n = record["n"]
    better = {"accuracy": 1.0, "correct": n, "n": n, "interval": [0.99, 1.0]}
    rewrite(path, worst_case=better)
    for other in runs[1].glob("evaluation/12-*.json"):
        other.unlink()
    (answer,) = (line for line in make_report(list(runs)).answer if line.startswith("Most robust"))
    assert "other, 100.00% in the worst case" in answer and "do not overlap" in answer
    flag = {"name": "loss_flat", "fired": True, "measured": {"gain": 0.0}, "meaning": "flat & so on"}
    rewrite(path, flags={"loss_flat": flag})
    report = make_report(list(runs))
    assert not any(line.startswith("Most robust") for line in report.answer)
    assert "Left out for signs of gradient masking: other." in report.answer
    assert [(name, found.name) for name, found in report.flags] == [("other", "loss_flat")]
    table = next(t for t in report.tables if t.name == "results-1")
    row = next(row for row in table.rows if row[0] == "other")
    assert not row[1].startswith("≤") and all(cell.startswith("≤ ") for cell in row[2:])
    rewrite(path, ids_sha256="0" * 64)
    assert any("only rows of one table compare" in line for line in make_report(list(runs)).answer)


def test_what_is_missing_is_said_with_the_command_that_makes_it(runs, rewrite, command, tmp_path):
    folder = RunFolder(runs[1])
    shutil.rmtree(folder.evaluation)
    with folder.metrics.open("ab") as file:
        file.write(b'{"step": 16, "obj')
    lines = folder.metrics.read_bytes().split(b"\n")
    folder.metrics.write_bytes(b"\n".join([lines[0], lines[1][:9], *lines[2:]]))
    code, _, err = command("report", runs[1], "-o", tmp_path / "page.html")
    assert code == 0
    assert f"other has no evaluation; to make one: llrflow evaluate {runs[1]}" in err
    rewrite(folder.run, state="interrupted", step=8, error="stopped")
    code, _, err = command("report", *runs, "-o", tmp_path / "page.html")
    assert code == 0 and f"to continue: llrflow run {runs[1]}/spec.yaml --out {runs[1]}" in err
    assert "2 half-written line(s)" in err and "interrupted at step 8 of 12 (stopped)" in plain(
        (tmp_path / "page.html").read_text()
    )


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda run: (run / "run.json").write_text('{"format": 99}'), "format 99, and this version of llrflow reads"),
        (lambda run: (run / "run.json").write_text("{"), "run.json"),
        (lambda run: (run / "evaluation/12.json").write_text('{"format": 99}'), "install a newer llrflow"),
        (lambda run: (run / "evaluation/12.npz").write_bytes(b"PK\x03\x04"), "is damaged"),
        (lambda run: (run / "evaluation/12.surface.json").write_text("{"), "is damaged"),
        (lambda run: (run / "evaluation/12.strength.json").write_text("{}"), "is damaged"),
        (lambda run: (run / "spec.yaml").write_text("a: [1"), "spec.yaml"),
        (lambda run: (run / "spec.yaml").unlink(), "spec.yaml"),
        (lambda run: shutil.rmtree(run), "is no folder"),
        (lambda run: [shutil.rmtree(run), run.mkdir()], "holds no run and no sweep"),
    ],
    ids=[
        "newer run",
        "no run",
        "newer evaluation",
        "images",
        "study",
        "no study",
        "spec",
        "no spec",
        "no folder",
        "empty folder",
    ],
)
def test_what_cannot_be_read_is_one_line_and_no_page(runs, command, tmp_path, harm, words):
    harm(runs[0])
    code, out, err = command("report", runs[0], "-o", tmp_path / "page.html")
    assert (code, out) == (2, "") and words in err and len(err.splitlines()) == 1
    assert not list(tmp_path.glob("*.html*"))


def test_a_sweep_that_cannot_be_read_is_one_line(swept, command):
    for content, words in (('{"format": 99}', "install a newer llrflow"), ("{", "--resume")):
        (swept / "sweep.json").write_text(content)
        code, out, err = command("report", swept)
        assert (code, out) == (2, "") and words in err and len(err.splitlines()) == 1


def test_a_page_that_cannot_be_written_is_one_line(runs, command, tmp_path):
    for path, words in ((tmp_path / "no" / "page.html", "has no parent folder"), (tmp_path, "is a folder")):
        code, out, err = command("report", runs[0], "-o", path)
        assert (code, out) == (2, "") and words in err and len(err.splitlines()) == 1


def test_without_its_extra_a_report_says_what_to_install(runs, command, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = command("report", runs[0])
    assert code == 2 and "pip install 'llrflow[report]'" in err
    monkeypatch.undo()
    require_extra()


def test_names_and_values_stay_text(runs, rewrite, command, tmp_path):
    hostile = "<script>document.title='x'</script>\"&$_#"
    rewrite(runs[1] / "run.json", name=hostile, git=hostile)
    spec = (runs[1] / "spec.yaml").read_text()
    (runs[1] / "spec.yaml").write_text(spec.replace("name: tiny", f"name: {json.dumps(hostile)}"))
    lines = [json.dumps({"step": line["step"], hostile: line["loss"]}) for line in RunFolder(runs[1]).metric_lines()]
    (runs[1] / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    folder = shutil.move(runs[1], runs[1].with_name("<b onload=x>"))
    assert command("report", folder, "-o", tmp_path / "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page and "<b onload" not in page and "&lt;script&gt;" in page
    assert hostile in plain(page)
    (picture,) = (picture for picture in make_report([folder]).pictures if "script" in picture.name)
    ElementTree.fromstring(picture.svg())
    table = Table("t", hostile, ["", "a|b"], [[hostile, "1 %"]])
    assert r"a\|b" in markdown(table) and r"\textless{}script\textgreater{}" in latex(table)
    assert latex(Table("t", "≤ 1 ± 2", ["", "x"], [["[a]", ""]])).count("$") == 4 and "{[}a]" in latex(
        Table("t", "", ["", "x"], [["[a]", ""]])
    )
    assert r"\&\$\_\#" in latex(table) and r"1 \%" in latex(table)
    norms = latex(Table("results-1", "linf 8/255", ["", "l2"], [["l1_ball", "null"]]))
    assert r"\caption{$\ell_{\infty}$ 8/255}" in norms and r"$\ell_{2}$" in norms and "null" in norms
    assert (
        r"l1\_ball" in norms and norms.startswith("\\begin{table}\n\\centering\n") and r"\label{tab:results-1}" in norms
    )


def test_tables_are_printed_for_papers(runs, command, tmp_path):
    code, out, _ = command("report", *runs, "--table", "markdown")
    nominal = RunFolder(runs[0]).evaluations()[12].nominal.accuracy
    assert code == 0 and f"| tiny | {nominal:.2%}" in out and not list((tmp_path / "cwd").iterdir())
    code, out, _ = command("report", *runs, "--table", "latex")
    assert code == 0 and out.count(r"\begin{tabular}") == out.count(r"\end{tabular}") == 2


def test_what_was_written_is_told_as_json(runs, command, tmp_path):
    code, out, err = command("report", *runs, "--json")
    told, page = json.loads(out), tmp_path / "cwd" / "report.html"
    assert (code, err) == (0, "") and told["page"] == "report.html" and told["bytes"] == page.stat().st_size
    assert told["answer"][0].startswith("How accurate is mlp on digits") and len(told["missing"]) == 2
    assert "spec.yaml was edited after the run" in told["missing"][0]
    code, out, err = command("report", *runs, "--json", "--table", "latex")
    assert code == 2 and out == "" and "choose one" in err


@pytest.mark.alone
def test_a_report_of_six_runs_takes_no_more_than_ten_seconds(studied, tmp_path, repository):
    for number in range(6):
        shutil.copytree(studied, tmp_path / "runs" / f"run-{number}")
    began = time.monotonic()
    command = [sys.executable, "-m", "llrflow", "report", tmp_path / "runs", "-o", tmp_path / "page.html"]
    subprocess.run(command, check=True, cwd=repository, capture_output=True, timeout=60)
    assert time.monotonic() - began <= 10 and (tmp_path / "page.html").stat().st_size <= 5e6


def test_a_sweep_has_its_configurations_its_front_and_its_rungs(swept):
    report = make_report([swept])
    rows = {picture.name: picture.rows for picture in report.pictures}
    assert [row["trial"] for row in rows["sweep-1-pareto"] if row["on_front"]] == [0, 1]  # the masked one cannot be
    assert [(row["trial"], row["step"], row["worst_case.accuracy"]) for row in rows["sweep-1-rungs"]][:3] == [
        (0, 4, 0.2),
        (0, 8, 0.4),
        (1, 4, 0.3),
    ]
    assert {"sweep-1-parameter-1", "sweep-1-parameter-2", "sweep-1-parallel"} <= set(rows)
    table = next(table for table in report.tables if table.name == "sweep-1-configurations")
    by_trial = {row[0]: row[-1] for row in table.rows}
    assert list(by_trial)[:2] == ["1", "0"] and by_trial["3"] == "stopped"
    assert by_trial["2"] == "signs of gradient masking: loss_flat"
    runs, (sweep,), unread = read([swept])
    assert [run.name for run in runs] == ["trial 1", "trial 0"] and unread == [] and sweep.record.best == 1


def test_no_point_of_the_front_is_reached_by_another_in_both():
    rng = np.random.default_rng(0)
    points = [(float(x), float(y)) for x, y in np.round(rng.random((60, 2)), 1)]
    edge = front(points)
    assert edge == sorted(edge) and edge
    for point in points:
        better = [p for p in points if p != point and p[0] >= point[0] and p[1] >= point[1]]
        assert (point in edge) == (not better)


def test_runs_are_told_apart_by_folder_and_path(runs, studied):
    assert [run.name for run in read([runs[0].parent])[0]] == ["tiny", "other"]
    assert [run.name for run in read([runs[0], studied])[0]] == [str(runs[0]), str(studied)]
    assert [run.name for run in read([runs[0], runs[0] / ".." / "one"])[0]] == ["tiny"]


def test_leaves_are_dotted_paths():
    spec = {"a": {"b": 1, "c": {}}, "d": [1, 2], "e": "x"}
    assert dict(leaves(spec)) == {"a.b": 1, "a.c": {}, "d": [1, 2], "e": "x"}


def test_defaults_of_blocks_that_one_lacks_are_no_differences(runs):
    first, second = (RunFolder(run).record() for run in runs)
    written = first.model_copy(update={"origins": {"term.weight": "a.yaml:1:1"}})
    specs = [{"seed": 0, "same": 1, "term.weight": 2.0, "term.default": True}, {"seed": 1, "same": 1}]
    assert differing_paths(specs, [written, second]) == ["seed", "term.weight"]


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_images_of_any_channels_and_size_become_small_pngs(channels):
    from PIL import Image

    image = np.linspace(0, 1, 200 * 100 * channels).reshape(200, 100, channels)
    made = Image.open(io.BytesIO(png(image)))
    assert made.size == (48, 96) and made.mode == ("RGB" if channels == 3 else "L")
    small = np.array([[[0.0], [1.0]]])
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(small)))), [[0, 255]])
    assert data_uri(small).startswith("data:image/png;base64,")


def pictures_of(*paths):
    return {picture.name: picture.rows for picture in make_report(list(paths)).pictures}


def test_cells_stand_under_their_attack_whatever_the_order(runs, rewrite):
    def turned(record):
        return {**record, "attacks": dict(reversed(record["attacks"].items()))}

    rewrite(runs[1] / "evaluation" / "12.json", turned)
    table = next(table for table in make_report(list(runs)).tables if table.name == "results-1")
    assert len(table.rows) == 2 and table.rows[0][1:] == table.rows[1][1:] and len(set(table.rows[0])) > 3

    def cascaded(record):
        return {**record, "cascade": True}

    for run in runs:
        rewrite(run / "evaluation" / "12.json", cascaded)
    tables = [table for table in make_report(list(runs)).tables if table.name.startswith("results")]
    assert [len(table.rows) for table in tables] == [1, 2, 1], "the order of a cascade matters"


def test_numbers_are_those_of_the_files(runs):
    first = runs[0] / "evaluation"
    record = RunFolder(runs[0]).evaluations()[12]
    report = make_report([runs[0]])
    table = next(table for table in report.tables if table.name == "kills")
    pgd = next(row for row in table.rows if row[0] == "tiny, pgd")
    made = record.attacks["pgd"]
    each = [f"{spent / made.attacked:,.1f}" for spent in (made.queries, made.gradients)]
    assert pgd[1:5] == [str(made.attacked), str(made.kills), *each] and float(each[0]) > 1
    results = next(table for table in report.tables if table.name == "results-1").rows[0]
    assert results[1].startswith(f"{record.nominal.accuracy:.2%}")
    assert results[-1].startswith(f"{record.worst_case.accuracy:.2%}") and results[1] != results[-1]

    rows = {picture.name: picture.rows for picture in report.pictures}
    study = json.loads((first / "12.linearity.json").read_text())["perturbations"]
    assert {row["adversary"] for row in rows["linearity"]} == set(study)
    for row in rows["linearity"]:
        largest = study[row["adversary"]][-1]["gamma"]
        assert row["mean"] == largest["mean"] and row["q0.5"] == largest["quantiles"]["0.5"]
        assert row["q0.95"] == largest["quantiles"]["0.95"]
    (near,) = (e for label, e in RunFolder(runs[0]).last_evaluations().items() if label)
    curve = [(point.epsilon, point.accuracy) for point in near.attacks["near"].minimum.curve]
    assert [(row["radius"], row["accuracy"]) for row in rows["radius-near"]] == curve and curve[0][1] > 0
    surface = json.loads((first / "12.surface.json").read_text())
    image, axis = surface["images"][0], surface["axis"]
    found = {(row["attack"], row["random"]): row["loss"] for row in rows["surface-1"] if row["image"] == image["id"]}
    assert found[axis[-1], axis[0]] == image["loss"][-1][0] != image["loss"][0][-1]


def test_a_gallery_shows_what_was_kept(runs):
    from PIL import Image

    with np.load(runs[0] / "evaluation" / "12.npz", allow_pickle=False) as stored:
        kept = dict(stored)
    (name, shown), *_ = make_report([runs[0]]).galleries
    assert name == "tiny" and [image.id for image in shown] == kept["ids"].tolist()
    for i, image in enumerate(shown):
        assert image.changed == bool(kept["changed"][i]) and image.label == kept["labels"][i]
        assert image.clean_says.startswith(f"{kept['clean'][i].argmax()} (")
        assert image.adversarial_says == f"{kept['attacked'][i].argmax()} ({kept['attacked'][i].max():.0%})"
        for uri, pixels in (
            (image.clean, kept["images"][i]),
            (image.adversarial, kept["images"][i] + kept["delta"][i]),
        ):
            drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
            np.testing.assert_array_equal(drawn, np.round(np.clip(pixels[..., 0], 0, 1) * 255))
        difference = np.asarray(Image.open(io.BytesIO(base64.b64decode(image.difference.split(",")[1]))))
        np.testing.assert_array_equal(difference > 128, kept["delta"][i][..., 0] > 0.005)
    fewer = {name: array[[0, 3, 5]] for name, array in kept.items()}
    np.savez(runs[1] / "evaluation" / "12.npz", **fewer)
    both = [[image.id for image in shown] for _, shown in make_report(runs).galleries]
    assert both == 2 * [fewer["ids"].tolist()], "runs on the same images show the same ones"
    np.savez(runs[1] / "evaluation" / "12.npz", **{**fewer, "ids": np.array([997, 998, 999])})
    both = [[image.id for image in shown] for _, shown in make_report(runs).galleries]
    assert both == [kept["ids"].tolist(), [997, 998, 999]], "with none in common, each its own"
    np.savez(runs[1] / "evaluation" / "12.npz", **kept)
    third = shutil.copytree(runs[0], runs[0].parent / "three")
    spread = make_report([*runs, third]).galleries[0][1]
    assert [image.id for image in spread] == kept["ids"][[0, 2, 4, 7]].tolist()


def test_only_the_last_evaluated_checkpoint_counts(runs, rewrite):
    earlier = runs[0] / "evaluation" / "4.json"
    record = json.loads((runs[0] / "evaluation" / "12.json").read_text())
    del record["sha256"]
    earlier.write_text("{}")
    rewrite(earlier, **{**record, "checkpoint": 4})
    ((run,), _, _) = read([runs[0]])
    assert {evaluated.record.checkpoint for evaluated in run.evaluations} == {12}


def test_signs_of_masking_in_any_evaluation_leave_a_run_out_of_the_answer(runs, rewrite):
    (other,) = runs[0].glob("evaluation/12-????????.json")
    flag = {"name": "loss_flat", "fired": True, "measured": {}, "meaning": "flat"}
    rewrite(other, lambda record: {**record, "flags": {"loss_flat": flag}})
    report = make_report(list(runs))
    assert [name for name, _ in report.flags] == ["tiny"]
    assert "Left out for signs of gradient masking: tiny." in report.answer
    assert not any(line.startswith("Most robust") for line in report.answer)


def test_the_lowest_worst_case_of_a_run_is_told(runs, rewrite):
    (other,) = runs[0].glob("evaluation/12-????????.json")
    lower = {"accuracy": 0.0125, "correct": 1, "n": 80, "interval": [0.0, 0.1]}
    rewrite(other, lambda record: {**record, "worst_case": lower})
    assert any("tiny" in line and "1.25% in the worst case, under near" in line for line in make_report([*runs]).answer)


def test_the_front_is_of_trials_that_finished_without_signs_of_masking(swept, rewrite):
    def changed(record):
        trials = [dict(trial) for trial in record["trials"]]
        trials[3] |= {"nominal": 0.99, "robust": 0.99}  # stopped: measured with other attacks
        trials[2] |= {"nominal": 0.80, "robust": 0.60}  # masked, where another is that is not
        return {**record, "trials": trials}

    rewrite(swept / "sweep.json", changed)
    rows = pictures_of(swept)["sweep-1-pareto"]
    assert {row["trial"]: row["on_front"] for row in rows} == {0: True, 1: True, 2: False, 3: False}


def test_stronger_attacks_of_a_sweep_have_a_column(swept, rewrite):
    def changed(record):
        escalated = {"attacks": "quick", "robust": 0.5, "masked": []}
        trials = [{**trial, "escalated": escalated if trial["number"] == 1 else None} for trial in record["trials"]]
        first = {**record["configurations"][0], "escalated": 0.5}
        return {**record, "trials": trials, "configurations": [first, *record["configurations"][1:]]}

    rewrite(swept / "sweep.json", changed)
    table = next(table for table in make_report([swept]).tables if table.name == "sweep-1-configurations")
    assert table.headings[2] == "quick" and [row[2] for row in table.rows] == ["50.00%", "", "", ""]


def test_what_cannot_be_read_among_others_is_left_out_and_told(runs, swept):
    (runs[1] / "run.json").write_text('{"format": 99}')
    report = make_report([runs[0].parent])
    assert any("left out" in line and "format 99" in line for line in report.missing)
    assert [name for name, _ in report.specs] == ["tiny"]
    shutil.rmtree(swept / "runs" / "trial-0")
    assert any("left out" in line for line in make_report([swept]).missing)


def test_names_that_matplotlib_would_take_for_something_else(runs, tmp_path, rewrite):
    for run, name in zip(runs, ("_x", "r$x_$"), strict=True):
        rewrite(run / "run.json", lambda record, name=name: {**record, "name": name})
    picture = next(p for p in make_report(list(runs)).pictures if p.name == "training-accuracy")
    text = " ".join(ElementTree.fromstring(picture.svg()).itertext())
    assert "_x" in text and "r$x_$" in text


def test_long_curves_are_thinned_and_keep_their_ends():
    points = [(float(i), float(i % 7)) for i in range(650)]
    svg = curves("c", "c", "", {"a": points}, "x", "y").svg()
    path = max(re.findall(r' d="([^"]*)"', svg), key=len)
    assert 100 < path.count("L") + path.count("M") <= 300  # matplotlib leaves out what lies on a line


def test_classes_have_a_table_and_a_picture_and_an_older_evaluation_is_named(runs, command, tmp_path, rewrite):
    report, found = make_report([runs[0]]), RunFolder(runs[0]).evaluations()[12].classes
    (table,) = (table for table in report.tables if table.name == "classes-1")
    assert [row[0] for row in table.rows] == found.names and table.headings[2:] == ["tiny, nominal", "tiny, worst case"]
    for at, (_, n, *shares) in enumerate(table.rows):
        assert n == str(found.n[at])
        assert shares == [f"{found.accuracy[situation][at]:.2%}" for situation in ("nominal", "worst case")]
    rows = pictures_of(runs[0])["confusion-1"]
    assert {(row["situation"], int(row["class"]), int(row["taken_for"])): row["images"] for row in rows} == {
        (s, y, p): n for s in ("nominal", "worst case") for y, row in found.taken[s].items() for p, n in row.items()
    }
    rewrite(runs[1] / "evaluation" / "12.json", lambda record: {k: v for k, v in record.items() if k != "classes"})
    code, _, err = command("report", *runs, "-o", tmp_path / "page.html")
    assert code == 0 and f"delete {runs[1]}/evaluation/12.json, and llrflow evaluate {runs[1]}" in err
    page = (tmp_path / "page.html").read_text()
    assert 'aria-label="who is taken for whom, tiny"' in page and "who is taken for whom, other" not in page


def test_logarithmic_axes_have_plain_numbers_at_their_ticks():
    def draw(low, high):
        figure, place = axes(xscale="log")
        place.plot([low, high], [0, 1])
        return figure

    for low, high, wanted in ((0.01, 100, {"0.01", "1", "100"}), (0.2, 0.5, {"0.3", "0.4"})):
        svg = Picture("log", "", "", lambda low=low, high=high: draw(low, high), []).svg()
        assert "mathdefault" not in svg and wanted <= set(re.findall(r">([\d.]+)</text>", svg))


@pytest.mark.parametrize(
    ("epsilon", "text"),
    [(0.1, "0.1"), (0.5, "0.5"), (0.031, "0.031"), (1.0, "1"), (8 / 255, "8/255"), (0.5 / 255, "1/510"),
     (1 / 7, "0.142857")],
)  # fmt: skip
def test_a_radius_is_written_as_specs_have_it(epsilon, text):
    assert written(epsilon) == text
