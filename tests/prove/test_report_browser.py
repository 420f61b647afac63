"""The report in a real browser: its figures, its width on a phone, its themes, its print."""

from __future__ import annotations

import html
import json
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import proofs
import pytest
from report_page import Found, agree

from sprat.prove.report import write

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (or google-chrome) on the PATH")

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
WIDTHS = (360, 768, 1100)

#: Lays the page out in frames of each width (a browser's own window cannot be as narrow as a phone) and reads it there.
PROBE = """<!doctype html><meta charset="utf-8"><title>probe</title>%s<pre id="found"></pre><script>
addEventListener("load", () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, width = frame.clientWidth;
    const wide = [...page.body.querySelectorAll("*")].filter(e => !e.closest(".hidden"))
      .map(e => [e.tagName + " " + e.textContent.trim().slice(0, 40), e.getBoundingClientRect()])
      .filter(([, box]) => box.width && (box.right > width + 0.5 || box.left < -0.5));
    found[width] = {
      scroll: page.documentElement.scrollWidth, wide: wide.map(([name, box]) => [name, box.left, box.right]),
      title: page.title, heading: page.querySelector("h1").textContent,
      ground: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
      figures: [...page.querySelectorAll("[data-figure]")].map(e => ({path: e.dataset.figure, value: e.value,
        text: e.textContent, scale: e.dataset.scale, offset: e.dataset.offset})),
      drawn: [...page.querySelectorAll("svg circle, svg rect")].filter(e => {
        const box = e.getBoundingClientRect(), closed = e.closest("details:not([open])");
        return !closed && box.width > 0 && box.height > 0; }).length,
    };
  }
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>"""


@pytest.fixture
def browse(tmp_path: Path) -> Callable[..., str]:
    """Run the browser once; what it prints."""

    def run(*arguments: str) -> str:
        profile = tmp_path / f"profile-{len(list(tmp_path.glob('profile-*')))}"
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *arguments]
        done = subprocess.run(command, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
        return done.stdout.decode("utf-8")

    return run


def frames(page: Path, height: int = 800, widths: tuple[int, ...] = WIDTHS) -> str:
    source = html.escape(page.read_text(encoding="utf-8"), quote=True)
    return "".join(
        f'<iframe style="border:0;width:{width}px;height:{height}px" srcdoc="{source}"></iframe>'
        for width in widths
    )


def probe(page: Path, browse: Callable[..., str], *flags: str) -> dict[str, Any]:
    """What the page is like in a frame of each width."""
    wrapper = page.with_name("probe.html")
    wrapper.write_text(PROBE % frames(page), encoding="utf-8")
    dom = browse(
        "--window-size=1200,900", "--virtual-time-budget=5000", *flags, "--dump-dom", wrapper.as_uri()
    )
    found = re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom[-2000:]
    return json.loads(html.unescape(found[1]))


@pytest.mark.parametrize("variant", [proofs.minimal, proofs.full, proofs.nulls, proofs.large])
def test_figures_and_widths(variant, tmp_path, browse):
    """Every figure of the DOM is the JSON's, and nothing leaves the page on a phone, a tablet or a desk."""
    result = variant()
    write(result, tmp_path, proofs.PEERS)
    found = probe(tmp_path / "index.html", browse)
    assert sorted(found) == sorted(str(width) for width in WIDTHS)
    for width, seen in found.items():
        agree(
            [
                Found(
                    f["path"],
                    float(f["value"]),
                    f["text"],
                    float(f.get("scale", 1)),
                    float(f.get("offset", 0)),
                )
                for f in seen["figures"]
            ],
            result,
        )
        assert len(seen["figures"]) > 20
        assert "80.3 %" in seen["heading"]
        assert not seen["wide"], (width, seen["wide"][:5])
        assert seen["scroll"] <= int(width)
        assert seen["drawn"] >= 3


def test_hostile_names_neither_run_nor_widen(tmp_path, browse):
    """Long names without a break, and markup, in every string."""
    bad = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">" + "W" * 300

    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spoil(item) for key, item in value.items()}
        if isinstance(value, list):
            return [spoil(item) for item in value]
        return bad if isinstance(value, str) else value

    write(spoil(proofs.full()), tmp_path, [peer | {"name": bad, "record": bad} for peer in proofs.PEERS])
    # The page's own policy would stop a script too; without it, escaping alone must.
    page = tmp_path / "index.html"
    text = page.read_text(encoding="utf-8")
    page.write_text(re.sub(r"<meta http-equiv=.*?>", "", text), encoding="utf-8")
    assert page.read_text(encoding="utf-8") != text
    for width, seen in probe(page, browse).items():
        assert seen["title"].startswith("Proof of ") and "owned" not in seen["title"].partition("<")[0]
        assert not seen["wide"], (width, seen["wide"][:5])


def test_themes_and_screenshots(tmp_path, browse):
    """Light and dark follow the reader's setting; both are drawn, and differ."""
    write(proofs.full(), tmp_path, proofs.PEERS)
    page, pictures = tmp_path / "index.html", {}
    for theme, flag in (("light", 1), ("dark", 0)):
        setting = f"--blink-settings=preferredColorScheme={flag}"
        picture = tmp_path / f"{theme}.png"
        browse("--window-size=1100,1400", setting, f"--screenshot={picture}", page.as_uri())
        pictures[theme] = picture.read_bytes()
        assert pictures[theme].startswith(b"\x89PNG")
        assert struct.unpack(">II", pictures[theme][16:24]) == (1100, 1400)
    # A page without text or pictures is a tenth of this.
    assert all(len(picture) > 40_000 for picture in pictures.values())
    assert pictures["light"] != pictures["dark"]
    assert (
        probe(page, browse, "--blink-settings=preferredColorScheme=0")["360"]["ground"] == "rgb(20, 23, 26)"
    )


def test_print(tmp_path, browse):
    """A4, and no more pages than the evidence needs."""
    write(proofs.full(), tmp_path, proofs.PEERS)
    paper = tmp_path / "page.pdf"
    browse("--no-pdf-header-footer", f"--print-to-pdf={paper}", (tmp_path / "index.html").as_uri())
    content = paper.read_bytes()
    pages = re.findall(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ([\d.]+)\s*\]", content)
    assert 1 <= len(pages) <= 8
    for width, height in pages:
        assert float(width) == pytest.approx(595, abs=2) and float(height) == pytest.approx(842, abs=2)
