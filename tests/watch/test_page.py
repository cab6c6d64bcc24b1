"""The page in a browser: it shows, follows and compares runs, and never runs what a run says."""

from __future__ import annotations

import json

import pytest

from fastrl.config import PPOConfig
from tests.watch.browser import BROWSER, DRIVER, Browser
from tests.watch.made_runs import append, fault, make_run, rows_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver"),
]
DRAWN = "document.querySelectorAll('.plot canvas').length"


@pytest.fixture
def runs(tmp_path):
    make_run(tmp_path / "first", rows_of(0), seed=0, finished=True)
    make_run(tmp_path / "second", rows_of(1), seed=1, finished=True)
    fast = PPOConfig(learning_rate=0.5)
    make_run(tmp_path / "fast", rows_of(2)[:30], algorithm=fast, running=True)
    return tmp_path


def canvas(browser):
    """Return the picture of the first chart."""
    return browser.run("return document.querySelector('.plot canvas').toDataURL()")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light")])
def test_runs_are_shown_on_screens_of_any_width(serve, runs, width, scheme):
    with Browser(width, 900, scheme) as browser:
        browser.open(serve(runs).server.url)
        browser.wait_for(f"{DRAWN} >= 4")
        browser.wait_for("document.querySelectorAll('.worker').length == 3")
        text = browser.run("return document.body.innerText")
        shown = ("learning_rate=0.5", "of the limit", "of 5000 steps/s", "1 running")
        for part in (*shown, "No worker has failed"):
            assert part in text
        assert browser.run("return document.documentElement.scrollWidth") == width
        ground = browser.run("return getComputedStyle(document.body).backgroundColor")
        is_dark = sum(map(int, ground.strip("rgb()").split(","))) < 3 * 128
        assert is_dark == (scheme == "dark")
        assert browser.errors() == []


def test_every_control_and_picture_has_a_name(serve, runs):
    with Browser() as browser:
        browser.open(serve(runs).server.url)
        browser.wait_for(f"{DRAWN} >= 4")
        nameless = browser.run("""
            return [...document.querySelectorAll('button, select, input, canvas, [role=img], img')]
              .filter((e) => e.offsetParent && e.tagName != 'CANVAS' && !(e.innerText || '').trim()
                && !e.getAttribute('aria-label') && !(e.labels && e.labels.length) && !e.alt)
              .map((e) => e.outerHTML)""")
        assert nameless == []
        label = "document.querySelector('.plot')?.getAttribute('aria-label')"
        assert browser.run(f"return {label}").startswith("return_mean: ")


def test_groups_metrics_and_axes_can_be_chosen(serve, runs):
    with Browser() as browser:
        browser.open(serve(runs).server.url)
        browser.wait_for(f"{DRAWN} >= 4")
        label = "document.querySelector('.plot')?.getAttribute('aria-label')"
        assert "learning_rate=0.5" in browser.run(f"return {label}")
        browser.click(".group input")
        browser.wait_for(f"!{label}?.includes('learning_rate=0.5')")
        browser.run("""
            const select = document.querySelector('.chart select');
            select.value = 'training/approx_kl';
            select.dispatchEvent(new Event('change'));""")
        browser.wait_for(f"{label}?.startsWith('approx_kl')")
        before = canvas(browser)
        browser.click("input[value=wall_s] + span")
        browser.wait_for(
            f"document.querySelector('.plot canvas').toDataURL() != {json.dumps(before)}"
        )
        browser.click(".run[title=second]")
        browser.wait_for("document.querySelector('#focus h2')?.textContent == 'second'")
        browser.click("#add")
        browser.wait_for(f"{DRAWN} >= 5")
        browser.open(browser.run("return location.href"))
        browser.wait_for(f"{label}?.startsWith('approx_kl')")
        assert browser.errors() == []


def test_a_run_that_goes_on_is_followed(serve, runs):
    with Browser() as browser:
        browser.open(serve(runs).server.url)
        browser.wait_for("document.querySelector('#focus h2')?.textContent == 'fast'")
        before = canvas(browser)
        append(runs / "fast", rows_of(2)[30:45])
        browser.wait_for("document.querySelector('#focus dd')?.textContent.includes('45k')")
        assert canvas(browser) != before
        make_run(runs / "new", rows_of(3), running=True)
        browser.wait_for("document.querySelector('.run[title=new]')")


def test_text_of_runs_is_never_run(serve, tmp_path):
    evil = "<img src=x onerror=window.evil=1>"
    run = make_run(tmp_path / evil.replace("/", ""), faults=[fault(evil, worker=evil)])
    (run / "config.yaml").write_text(f"env: {{id: '{evil}'}}\nseed: '{evil}'\n")
    append(run, [{"kind": evil, "steps": 1, evil: 1.0}])
    make_run(tmp_path / "other")
    with Browser() as browser:
        browser.open(serve(tmp_path).server.url)
        browser.wait_for(f"{DRAWN} >= 4")
        browser.wait_for("document.querySelectorAll('.fault').length == 1")
        assert evil in browser.run("return document.querySelector('#faults').innerText")
        assert browser.run("return window.evil") is None
        assert browser.run("return document.querySelectorAll('img').length") == 0
        assert browser.errors() == []


def test_a_video_is_shown(serve, runs):
    (runs / "fast" / "videos").mkdir()
    # The smallest GIF.
    gif = bytes.fromhex(
        "47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b"
    )
    (runs / "fast" / "videos" / "step_1.gif").write_bytes(gif)
    with Browser() as browser:
        browser.open(serve(runs).server.url)
        browser.wait_for("document.querySelector('#agent img')?.naturalWidth == 1")
        assert browser.errors() == []
