"""Measure the built site in a headless Chromium: no page longer than ten screens, and nothing wider than a screen.

    mkdocs build --strict --site-dir site && python docs/check_layout.py site

Debian's package ``chromium`` has the browser. It opens every page at 1280 × 800 and 390 × 800, from a server on
loopback, and exits with 1 if a page is too long or if something overflows.
"""

import functools
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SCREENS, HEIGHT = 10, 800
WIDTHS = (1280, 390)
_HARNESS = """<!doctype html><body><script>
const pages = PAGES, widths = WIDTHS, found = [];
const frame = document.body.appendChild(document.createElement("iframe"));
async function measure(page, width) {
  frame.width = width; frame.height = HEIGHT;
  await new Promise(done => { frame.onload = done; frame.src = "/" + page; });
  await new Promise(done => setTimeout(done, 50));
  const root = frame.contentDocument, article = root.querySelector("article") || root.body;
  const inside = element => {
    for (let up = element.parentElement; up && up !== article; up = up.parentElement)
      if (/auto|scroll|hidden/.test(frame.contentWindow.getComputedStyle(up).overflowX)) return true;
    return false;
  };
  const wide = [...article.querySelectorAll("*")].filter(
    element => element.getBoundingClientRect().right > width + 1 && !inside(element));
  const tables = [...article.querySelectorAll(".md-typeset__scrollwrap")].filter(
    box => box.scrollWidth > box.clientWidth + 1).length;
  const code = [...article.querySelectorAll("pre > code")].filter(
    box => box.scrollWidth > box.clientWidth + 1).length;
  found.push({page, width, height: article.scrollHeight, tables, code,
    wide: wide.slice(0, 3).map(element => element.outerHTML.slice(0, 80))});
}
(async () => {
  for (const page of pages) for (const width of widths) await measure(page, width);
  const result = document.createElement("pre");
  result.id = "found"; result.textContent = JSON.stringify(found);
  document.body.replaceChildren(result);
})();
</script>"""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def measure(site: Path, browser: str) -> list[dict]:
    """Return the height of each page at each width, and what is wider than its place."""
    pages = sorted(
        path.parent.relative_to(site).as_posix() + "/"
        for path in site.rglob("index.html")
    )
    pages = ["" if page == "./" else page for page in pages]
    text = _HARNESS.replace("PAGES", json.dumps(pages)).replace(
        "WIDTHS", json.dumps(WIDTHS)
    )
    (site / "layout.html").write_text(
        text.replace("HEIGHT", str(HEIGHT)), encoding="utf-8"
    )
    handler = functools.partial(_Quiet, directory=str(site))
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        tempfile.TemporaryDirectory() as profile,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={profile}",
        ]
        command += [
            "--window-size=1400,900",
            "--timeout=240000",
            "--virtual-time-budget=2000000",
            "--dump-dom",
        ]
        address = f"http://127.0.0.1:{server.server_address[1]}/layout.html"
        shown = subprocess.run(
            [*command, address],
            capture_output=True,
            encoding="utf-8",
            timeout=300,
            check=True,
        )
        server.shutdown()
    (site / "layout.html").unlink()
    return json.loads(
        unescape(
            re.findall(r'<pre id="found">(.*?)</pre>', shown.stdout, re.DOTALL)[
                0
            ]
        )
    )


def main(site: Path) -> int:
    """Print what is too long or too wide, and return how many findings there are."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print(
            "no chromium: install Debian's package chromium, or do without this check"
        )
        return 0
    findings = 0
    for row in measure(site, browser):
        name, screens = (
            f"{row['page'] or 'index'} at {row['width']}",
            row["height"] / HEIGHT,
        )
        long = row["width"] == max(WIDTHS) and screens > SCREENS
        notes = [f"{screens:.1f} screens"] if long else []
        notes += (
            [f"wider than the screen: {', '.join(row['wide'])}"]
            if row["wide"]
            else []
        )
        wide = row["width"] == max(WIDTHS)
        notes += (
            [f"{row['tables']} tables scroll sideways"]
            if wide and row["tables"]
            else []
        )
        notes += (
            [f"{row['code']} code blocks scroll sideways"]
            if wide and row["code"]
            else []
        )
        if notes:
            print(f"{name}: {'; '.join(notes)}")
        findings += len(notes)
    return findings


if __name__ == "__main__":
    sys.exit(1 if main(Path(sys.argv[1])) else 0)
