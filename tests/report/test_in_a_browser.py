"""The page in a real browser: Debian's chromium, started without a window."""

import html
import json
import re
import shutil
import subprocess

import pytest

from llrflow.report.page import make_report, write_report

WIDTHS = {"phone": 390, "desktop": 1280}

MEASURE = """
const measure = frame => {
  const page = frame.contentDocument, root = page.documentElement;
  const sizes = [...page.querySelectorAll("img, figure svg")].map(e => e.getBoundingClientRect());
  return {
    pictures: sizes.map(box => [box.width, box.height]),
    broken: [...page.images].filter(image => !image.naturalWidth).length,
    links: [...page.links].map(link => [link.getAttribute("href"), !!page.querySelector(link.getAttribute("href"))]),
    overflow: root.scrollWidth - root.clientWidth,
    values: [...page.querySelectorAll("tbody :nth-child(2)")].map(e => e.getBoundingClientRect().x / root.clientWidth),
    hints: [...page.querySelectorAll(".scroll")].map(e => getComputedStyle(e).backgroundAttachment),
  };
};
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => [frame.id, measure(frame)]);
  document.body.innerHTML = "<pre>" + JSON.stringify(Object.fromEntries(found)).replaceAll("<", "&lt;") + "</pre>";
});
"""


@pytest.fixture
def browsed(tmp_path):
    """browsed(page) -> ({width: what was measured}, lines of the console) of a page at each width."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs a chromium browser")

    def look(page):
        frames = [
            f'<iframe id={n} width={w} height=900 srcdoc="{html.escape(page)}"></iframe>' for n, w in WIDTHS.items()
        ]
        around = tmp_path / "around.html"
        around.write_text(f"<!doctype html><meta charset=utf-8><script>{MEASURE}</script>{''.join(frames)}")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
        command = [browser, *options, f"--user-data-dir={tmp_path / 'profile'}", around.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        found = re.findall("<pre>(.*)</pre>", done.stdout)[-1]  # before it the script itself
        return json.loads(html.unescape(found)), [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return look


def test_every_picture_has_size_links_lead_somewhere_and_nothing_is_wider_than_the_window(
    runs, swept, browsed, tmp_path
):
    write_report(make_report([*runs, swept]), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    found, console = browsed(page)
    assert console == [] and set(found) == set(WIDTHS)
    for measured in found.values():
        assert len(measured["pictures"]) > 40 and measured["broken"] == 0
        assert all(width > 60 and height > 30 for width, height in measured["pictures"])
        assert len(measured["links"]) > 8 and all(there for _, there in measured["links"])
        assert measured["overflow"] == 0
        assert measured["values"] and max(measured["values"]) < 0.8
        assert measured["hints"] and all(hint.startswith("local") for hint in measured["hints"])


def test_what_the_browser_is_asked_can_fail(browsed):
    found, console = browsed(
        "<a href='#no'>x</a><img src='data:image/png;base64,AA=='><div style='width:2000px'>x</div>"
        "<script>console.error('no')</script>"
    )
    assert len(console) == 2
    for measured in found.values():
        assert measured["links"] == [["#no", False]] and measured["broken"] == 1 and measured["overflow"] > 0
