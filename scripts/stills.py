"""The still picture of each live figure, for pages without JavaScript: drawn by its own module, stored beside it."""

from __future__ import annotations

import re
import shutil
import sys

from playwright.sync_api import Browser, sync_playwright

from deeptransfer.live import FOLDER, LiveFigure, names

WIDTH = 640


def still(browser: Browser, name: str) -> str:
    """What a page of the usual width shows before it is touched, as SVG without its handles."""
    page = browser.new_page(viewport={"width": WIDTH, "height": 800})
    page.set_content(f"<body style='margin: 0'>{LiveFigure(name).page()}</body>")
    picture = page.locator("figure.live .live-stage > svg")
    picture.wait_for()
    page.wait_for_function("document.querySelector('.live-stage > svg').hasAttribute('viewBox')")
    page.evaluate("document.querySelectorAll('.live-handle').forEach((handle) => handle.remove())")
    svg = picture.evaluate("(element) => element.outerHTML")
    page.close()
    svg = re.sub(r' (?:width|height)="[^"]*"', "", svg, count=2)  # as wide as the page
    return svg.replace('role="group"', 'role="img"', 1).replace("><", ">\n<") + "\n"


def main() -> None:
    """Draw all stills anew."""
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome") or playwright.chromium.executable_path
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for name in sys.argv[1:] or names():
            (FOLDER / "stills" / f"{name}.svg").write_text(still(browser, name), encoding="utf-8")
        browser.close()


if __name__ == "__main__":
    main()
