"""The page in a real browser, at the width of a desk and of a phone, light and dark; skipped where there is none."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from deeppatch.report.page import page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTHS = (1280, 400)
# a page with every fault that is looked for
FAULTY = """<!doctype html><title>faulty</title><div style="width: 900px; color: #888; background: #999">wide</div>
<img src="data:image/png;base64,AAAA" alt=""><script>console.error("a fault")</script>"""
HARNESS = """<!doctype html><meta charset="utf-8"><title>harness</title><body><script>
const contrast = style => {
  const light = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const [high, low] = [light(style.color), light(style.backgroundColor)].sort((a, b) => b - a);
  return (high + 0.05) / (low + 0.05);
};
const found = {}, pages = PAGES;
let waiting = Object.keys(pages).length;
for (const [name, [width, text]] of Object.entries(pages)) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 900; frame.style.border = 0; frame.srcdoc = text;
  frame.onload = () => {
    const inside = frame.contentDocument, root = inside.documentElement, body = inside.body;
    found[name] = {
      title: inside.title, wide: root.scrollWidth, width: root.clientWidth,
      images: [...inside.images].map(image => image.complete && image.naturalWidth > 0),
      shown: [...inside.images].map(image => image.getBoundingClientRect().width),
      charts: [...inside.querySelectorAll("figure > svg")].map(each => each.getBoundingClientRect().width),
      beyond: [...inside.querySelectorAll("main *")].filter(each => !each.closest(".scroll") && !each.closest("svg")
        && each.getBoundingClientRect().right > root.clientWidth + 1).map(each => each.outerHTML.slice(0, 80)),
      dark: frame.contentWindow.matchMedia("(prefers-color-scheme: dark)").matches,
      contrast: contrast(frame.contentWindow.getComputedStyle(body)),
    };
    if (--waiting === 0) {
      const result = document.createElement("pre");
      result.textContent = JSON.stringify(found);
      document.body.replaceChildren(result);
    }
  };
  document.body.append(frame);
}
</script>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def opened(folder: Path, pages: dict[str, tuple[int, str]], *, dark: bool) -> tuple[dict[str, Any], list[str]]:
    """Open pages of some widths from a file on disk; return what was measured in each, and messages of the console."""
    written = json.dumps(pages).replace("</", "<\\/")
    (folder / "harness.html").write_text(HARNESS.replace("PAGES", written))
    done = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
         "--disable-background-networking", "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}",
         "--enable-logging=stderr", "--virtual-time-budget=4000",
         f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom",
         (folder / "harness.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    result = re.search("<pre>(.*)</pre>", done.stdout)
    assert result, done.stdout[-2000:] + done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(result[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")), console


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_fit_and_nothing_fails(blur_and_grid, hostile, pixels, tmp_path, dark):
    pages = {
        f"{name} {width}": (width, text)
        for name, text in (
            ("grid", page(blur_and_grid, blur_and_grid.frame(draws=5), pictures=pixels(blur_and_grid))),
            ("hostile", page(hostile, hostile.frame(draws=5), pictures=pixels(hostile))),
        )
        for width in WIDTHS
    }
    found, console = opened(tmp_path, {**pages, "faulty": (400, FAULTY)}, dark=dark)
    assert len(console) == 1, console
    assert "a fault" in console[0]
    faulty = found.pop("faulty")
    assert faulty["wide"] > faulty["width"]
    assert faulty["images"] == [False]
    assert found.keys() == pages.keys()
    for name, seen in found.items():
        width = pages[name][0]
        assert seen["title"].startswith("Repair of")
        assert seen["width"] == width
        assert seen["wide"] == width, name
        assert seen["beyond"] == [], name
        assert len(seen["images"]) >= 12
        assert all(seen["images"])
        assert all(60 <= shown <= width for shown in seen["shown"]), name
        assert seen["charts"]
        assert all(200 < chart <= width for chart in seen["charts"]), name
        assert seen["dark"] is dark
        assert seen["contrast"] > 10
