"""`explore` in a real browser: moved by the keyboard, printed, on a phone, in the dark, without JavaScript, from file://."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from deeptransfer.figures import Exploration, explore, use_house_style

SHADES, LEVELS = [0.0, 0.5, 1.0], [0.2, 0.6, 0.9]
START = {"shade": 0.5, "level": 0.6}

# What a theme does to outputs (Bootstrap's reset; a pale card in the dark), so that the figure must stand up to it.
PAGE = """<!doctype html><html lang="en"{theme}><head><meta charset="utf-8"><title>Figures</title>
<meta name="viewport" content="width=device-width"><style>
body {{ margin: 16px; font: 16px sans-serif; }} [hidden] {{ display: none !important; }}
html[data-theme=dark] body {{ background: #121212; color: #ced6dd; color-scheme: dark; }}
html[data-theme=dark] .bd-content div.cell_output .text_html:not(:has(table.dataframe)),
html[data-theme=dark] .bd-content div.cell_output img {{ background-color: #ced6dd; color: #14181e; padding: .5rem; }}
figure figcaption {{ color: #9ca4af; text-align: center; }}
</style></head><body><main class="bd-content"><h1>Figures</h1>{outputs}</main></body></html>"""


def patch(shade: float, level: float = 0.3) -> plt.Figure:
    """A figure of one colour, so that a screenshot tells the setting."""
    return plt.figure(figsize=(5, 2), facecolor=(shade, level, 0.0))


@pytest.fixture(scope="module")
def outputs() -> str:
    """Two figures as a notebook stores them: one with two controls, one with one."""
    with mpl.rc_context():
        mpl.use("agg")
        two = explore(
            patch,
            shade=SHADES,
            level=LEVELS,
            start=START,
            labels={"shade": "shade of red σ", "level": "level of green"},
            caption="Red and green.",
        )
        one = explore(patch, shade=SHADES)
    return of_a_notebook(two) + of_a_notebook(one)


def of_a_notebook(figure: Exploration) -> str:
    return f'<div class="cell_output"><div class="output text_html">{figure._repr_html_()}</div></div>'


@pytest.fixture
def open_page(browser, outputs: str, tmp_path: Path) -> Iterator[Callable]:
    """Open the two figures from a file; at the end no error was logged and nothing was asked of the network."""
    contexts, troubles, requests = [], [], []

    def open_(theme: str = "", outputs: str = outputs, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda message: troubles.append(message.text))
        page.on("request", lambda request: requests.append(request.url))
        path = tmp_path / "figures.html"
        path.write_text(PAGE.format(theme=theme, outputs=outputs), encoding="utf-8")
        page.goto(path.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert troubles == []
    assert {url.split(":")[0] for url in requests} <= {"file", "data"}


def shown(page, figure: int = 0) -> tuple[float, float]:
    """Red and green in the middle of the one frame that is to be seen."""
    frames = page.locator(".explore").nth(figure).locator("img:visible")
    assert frames.count() == 1
    picture = np.asarray(Image.open(io.BytesIO(frames.screenshot())).convert("RGB"))
    red, green = picture[picture.shape[0] // 2, picture.shape[1] // 2, :2] / 255
    return round(float(red), 1), round(float(green), 1)


def test_every_slider_moves_the_frame_by_keyboard(open_page):
    page = open_page()
    assert shown(page) == (0.5, 0.6)
    page.keyboard.press("Tab")  # the first thing to be reached is the first slider
    page.keyboard.press("ArrowRight")
    assert shown(page) == (1.0, 0.6)
    page.keyboard.press("Home")
    assert shown(page) == (0.0, 0.6)
    page.keyboard.press("Tab")
    page.keyboard.press("End")
    assert shown(page) == (0.0, 0.9)
    page.keyboard.press("ArrowLeft")
    assert shown(page) == (0.0, 0.6)
    assert shown(page, figure=1) == (0.0, 0.3)  # the other figure stayed
    page.keyboard.press("Tab")
    page.keyboard.press("End")
    assert shown(page, figure=1) == (1.0, 0.3)
    assert shown(page) == (0.0, 0.6)


def test_every_setting_shows_its_frame(open_page):
    page = open_page()
    red, green = page.locator(".explore").first.locator("input").all()
    for i, shade in enumerate(SHADES):
        for j, level in enumerate(LEVELS):
            red.fill(str(i))
            green.fill(str(j))
            assert shown(page) == (shade, level)


def test_screen_reader_hears_names_values_and_frames(open_page):
    page = open_page()
    figure = page.locator(".explore").first
    slider = figure.get_by_role("slider", name="shade of red σ", exact=True)
    said = figure.locator("[aria-live=polite]")
    assert slider.get_attribute("aria-valuetext") == "0.5"
    assert said.inner_text() == ""  # nothing is announced before the reader moves
    slider.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "1"
    assert figure.locator("output").first.inner_text() == "1"
    assert said.inner_text() == figure.locator("img:visible").get_attribute("alt")
    assert "shade of red σ = 1, level of green = 0.6" in said.inner_text()


def test_no_accessibility_violation(open_page):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for theme in ("", ' data-theme="dark"'):
        results = axe.run(open_page(theme))
        assert results.violations_count == 0, results.generate_report()


def test_print_shows_the_opening_frame_and_its_setting(open_page):
    page = open_page()
    page.get_by_role("slider").first.press("End")
    page.emulate_media(media="print")
    assert shown(page) == (0.5, 0.6)
    assert page.get_by_text("shade of red σ = 0.5, level of green = 0.6", exact=True).is_visible()
    assert page.locator("input:visible").count() == 0


def test_without_javascript_the_opening_frame_stands(open_page):
    page = open_page(java_script_enabled=False)
    assert shown(page) == (0.5, 0.6)
    assert page.get_by_text("shade of red σ = 0.5, level of green = 0.6", exact=True).is_visible()
    assert page.locator("input:visible").count() == 0  # a dead slider is worse than none


def test_untrusted_notebook_shows_the_opening_frame(open_page):
    """JupyterLab takes styles, scripts and attributes without a value from outputs of a notebook it does not trust."""
    page = open_page(java_script_enabled=False)
    content = re.sub(r"<(style|script)>.*?</\1>", "", page.content(), flags=re.DOTALL).replace(' hidden=""', "")
    page.set_content(content)
    assert shown(page) == (0.5, 0.6)
    assert page.locator("input:visible").count() == 0


def test_fits_a_phone(open_page):
    page = open_page(viewport={"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator(".explore img:visible").first.bounding_box()["width"] >= 350
    for slider in page.get_by_role("slider").all():
        box = slider.bounding_box()
        assert box["width"] >= 300
        assert box["height"] >= 24  # WCAG 2.2, target size


def test_dark_page_keeps_the_words_readable(open_page):
    """No pale card round the figure, and its words in the page's own colour."""
    page = open_page(' data-theme="dark"')
    assert page.locator(".text_html").first.evaluate("e => getComputedStyle(e).backgroundColor") == "rgba(0, 0, 0, 0)"
    for part in ("figcaption", "label", "output"):
        color = page.locator(f".explore {part}").first.evaluate("e => getComputedStyle(e).color")
        assert color == "rgb(206, 214, 221)", part


def half_a_digit(shade: float) -> plt.Figure:
    """On the left a white ground, on the right an image of one colour."""
    figure = plt.figure(figsize=(5, 2), layout="none")
    ax = figure.add_axes((0.5, 0, 0.5, 1))
    ax.imshow(np.full((2, 2, 3), (shade, 0.6, 0.3)), aspect="auto")
    ax.set_axis_off()
    return figure


@pytest.mark.parametrize("theme", ['data-theme="dark"', 'data-jp-theme-light="false"'])
def test_in_the_dark_the_ground_is_the_pages_and_images_keep_their_colours(open_page, theme):
    with mpl.rc_context():
        mpl.use("agg")
        use_house_style()
        outputs = of_a_notebook(explore(half_a_digit, shade=[0.2, 0.8]))
    page = open_page(f' style="background: #121212" {theme}', outputs)
    page.get_by_role("slider").press("End")  # of a frame that holds changes only
    for media in ("screen", "print"):
        page.emulate_media(media=media)
        seen = page.locator("img:visible").screenshot()
        pixels = np.asarray(Image.open(io.BytesIO(seen)).convert("RGB")).astype(int)
        middle = pixels.shape[0] // 2
        ground, image = pixels[middle, 40], pixels[middle, -40]
        shade = 0.8 if media == "screen" else 0.2  # paper shows the opening frame
        np.testing.assert_allclose(ground, 18 if media == "screen" else 255, atol=3)
        np.testing.assert_allclose(image, 255 * np.array([shade, 0.6, 0.3]), atol=16)


def test_sliders_stand_above_the_picture(open_page):
    page = open_page()
    figure = page.locator(".explore").first
    picture = figure.locator("img:visible").bounding_box()
    for slider in figure.get_by_role("slider").all():
        box = slider.bounding_box()
        assert box["y"] + box["height"] <= picture["y"]


def test_coming_back_to_the_page_sliders_and_frame_agree(open_page):
    """Browsers put back where a slider stood; the frame does not know of it."""
    page = open_page()
    page.get_by_role("slider").first.press("End")
    page.goto("about:blank")
    page.go_back()
    assert page.get_by_role("slider").first.input_value() == "1"
    assert shown(page) == (0.5, 0.6)


def test_a_figure_added_later_works_too(open_page):
    """JupyterLab puts an output into a page that is already there, and runs its script then."""
    page = open_page()
    page.evaluate(
        """() => {
            const old = document.querySelectorAll(".explore")[1], copy = old.cloneNode(true);
            delete copy.dataset.ready;
            const script = document.createElement("script");
            script.textContent = copy.querySelector("script").textContent;
            copy.querySelector("script").replaceWith(script);
            old.after(copy);
        }"""
    )
    page.locator(".explore").nth(2).get_by_role("slider").press("End")
    assert shown(page, figure=2) == (1.0, 0.3)
    assert shown(page, figure=1) == (0.0, 0.3)
