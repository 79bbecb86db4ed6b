"""The figures: what a colour means, what `explore` stores, and what it refuses."""

from __future__ import annotations

import base64
import html
import io
import itertools
import re
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from notebooks import KERNEL_ENVIRONMENT, WIDGET_VIEW
from PIL import Image

from deeptransfer import figures, pictures
from deeptransfer.figures import COLORS, MARKERS, bars_with_interval, curves, explore, image_grid, scatter_domains


@pytest.fixture(autouse=True)
def _house():
    with mpl.rc_context():
        mpl.use("agg")
        figures.use_house_style()
        yield
    plt.close("all")


def patch(shade: float = 0.5, level: float = 0.5, size: float = 1.0) -> plt.Figure:
    """A figure of one colour, so that the pixels tell the setting."""
    return plt.figure(figsize=(size, 0.5), facecolor=(shade, level, 0.0))


def images(page: str) -> list[dict]:
    return [
        {name: html.unescape(value) for name, value in re.findall(r'([\w-]+)="([^"]*)"', tag)}
        | {"hidden": 'hidden="hidden"' in tag}
        for tag in re.findall(r'<div (?:class="explore-start"|hidden="hidden")><div class="plate"><img .*?>', page)
    ]


def decoded(image: dict) -> Image.Image:
    kind, _, data = image["src"].partition(";base64,")
    assert kind in ("data:image/webp", "data:image/png")
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True))).convert("RGBA")


def frames(page: str) -> list[np.ndarray]:
    """What a reader sees at each setting: the opening picture, and over it what the frame changes."""
    (start,) = [decoded(image) for image in images(page) if not image["hidden"]]
    return [np.asarray(Image.alpha_composite(start, decoded(image)).convert("RGB")) for image in images(page)]


# --- explore: what is stored


def test_frames_follow_the_settings_last_control_fastest():
    shades, levels = [0.0, 0.4, 1.0], [0.2, 0.8]
    shown = frames(explore(patch, shade=shades, level=levels)._repr_html_())
    for frame, setting in zip(shown, itertools.product(shades, levels), strict=True):
        np.testing.assert_allclose(frame[20, 20, :2] / 255, setting, atol=0.01)


def test_opens_on_the_first_setting_or_on_start():
    for start, opened in (({}, (0.0, 0.2)), ({"shade": 0.4, "level": 0.8}, (0.4, 0.8)), ({"level": 0.8}, (0.0, 0.8))):
        exploration = explore(patch, shade=[0.0, 0.4], level=[0.2, 0.8], start=start)
        visible = [image for image in images(exploration._repr_html_()) if not image["hidden"]]
        assert len(visible) == 1
        pixels = np.asarray(decoded(visible[0]))
        np.testing.assert_allclose(pixels[20, 20, :2] / 255, opened, atol=0.01)
        assert pixels[..., 3].min() == 255  # whole, for paper and for pages without JavaScript
        assert f"shade = {opened[0]:g}, level = {opened[1]:g}</p>" in exploration._repr_html_()  # said on paper


def test_other_frames_hold_what_they_change_and_its_edges():
    def draw(x: float) -> plt.Figure:
        figure = plt.figure(figsize=(2, 1))
        figure.add_artist(plt.Rectangle((x, 0.4), 0.1, 0.2, color=COLORS["accent"]))
        return figure

    first, second = images(explore(draw, x=[0.2, 0.7])._repr_html_())
    alpha = np.asarray(decoded(second))[..., 3]
    assert 0.04 < (alpha > 0).mean() < 0.08  # two rectangles of 0.02 with three pixels around each
    assert len(second["src"]) < len(first["src"]) * 2


def test_same_call_gives_the_same_bytes():
    def call() -> str:
        return explore(patch, shade=[0.1, 0.2], caption="Two shades.")._repr_html_()

    assert call() == call()


def test_stores_html_and_plain_text_and_nothing_else():
    data, metadata = DisplayFormatter().format(explore(patch, shade=[0.1, 0.25], level=[1.0]))
    assert set(data) == {"text/html", "text/plain"}
    assert metadata == {}
    assert data["text/plain"] == "<Exploration of shade=[0.1, 0.25], level=[1]>"


def test_needs_nothing_from_outside_and_no_ids():
    """No address, so no request; no id, so that two copies on a page do not collide."""
    page = explore(patch, shade=[0.1, 0.2])._repr_html_()
    rest = page.replace("data:image/webp;base64,", "")
    assert "//" not in re.sub(r"[A-Za-z0-9+/=]{60,}", "", rest)
    assert " id=" not in page
    assert " for=" not in page


def test_the_ground_is_white_in_every_frame_and_the_axes_stay():
    def draw(n: int) -> plt.Figure:
        figure, ax = plt.subplots()
        ax.scatter(np.arange(n), np.arange(n), c=np.arange(n), cmap="turbo")
        ax.set(ylim=(0, n))  # a longer number at its end would push the axes to the right
        return figure

    shown = frames(explore(draw, n=[5, 50, 5000])._repr_html_())
    assert {tuple(frame[2, 2]) for frame in shown} == {(255, 255, 255)}
    spine = [int((frame[300] < 200).all(-1).argmax()) for frame in (shown[0][:, 60:], shown[1][:, 60:])]
    assert len(set(spine)) == 1


def test_every_control_is_a_labelled_range_with_its_value_in_words():
    page = explore(patch, shade=[0.1, 0.25], labels={"shade": "shade <σ>"}, start={"shade": 0.25})._repr_html_()
    assert '<label><span>shade &lt;σ&gt;</span><input type="range"' in page
    assert 'max="1" step="1" value="1"' in page
    assert 'aria-valuetext="0.25"' in page
    assert "<output>0.25</output>" in page


# --- explore: words instead of the picture


def test_alt_from_callable_differs_per_frame_and_is_escaped():
    page = explore(patch, shade=[0.1, 0.2], alt=lambda shade: f'a "patch" < {shade}')._repr_html_()
    assert [image["alt"] for image in images(page)] == ['a "patch" < 0.1', 'a "patch" < 0.2']


def test_alt_string_is_followed_by_the_setting():
    page = explore(patch, shade=[0.1, 0.2], alt="A patch.", labels={"shade": "σ"})._repr_html_()
    assert [image["alt"] for image in images(page)] == ["A patch. At σ = 0.1.", "A patch. At σ = 0.2."]


def test_alt_defaults_to_the_docstring_then_the_caption():
    documented = explore(patch, shade=[0.1])._repr_html_()
    assert images(documented)[0]["alt"].startswith("A figure of one colour, so that the pixels tell the setting. At ")
    bare = explore(lambda shade: patch(shade), shade=[0.1], caption="Shades & more")._repr_html_()
    assert images(bare)[0]["alt"] == "Shades & more. At shade = 0.1."
    assert "<figcaption>Shades &amp; more</figcaption>" in bare


# --- explore: values and figures


def test_draw_gets_plain_python_values():
    seen = []

    def draw(a: float, b: int) -> plt.Figure:
        seen.append((a, b))
        return patch()

    explore(draw, a=np.linspace(0, 1, 2), b=torch.arange(2))._repr_html_()
    assert set(seen) == {(0.0, 0), (0.0, 1), (1.0, 0), (1.0, 1)}
    assert {type(value) for pair in seen for value in pair} == {float, int}


def test_no_figure_stays_open():
    """An open figure would be shown a second time at the end of the cell."""
    mine = plt.figure()

    def draw(shade: float) -> plt.Figure:
        plt.figure()  # one that draw forgot
        return patch(shade)

    explore(draw, shade=[0.1, 0.2])._repr_html_()
    with pytest.raises(TypeError):
        explore(lambda shade: plt.subplots()[1], shade=[0.1])._repr_html_()
    assert plt.get_fignums() == [mine.number]


# --- explore: what it refuses


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, r"one or two controls, got 0 \(none\)"),
        ({"a": [1], "b": [1], "c": [1]}, r"one or two controls, got 3 \(a: 1 × b: 1 × c: 1\)"),
        ({"a": range(5), "b": range(5)}, r"25 frames \(a: 5 × b: 5\).*at most 24"),
        ({"a": []}, r"a=\[\] has no value"),
        ({"a": 3.0}, r"a=3.0 is no list of values; write a=\[…\]"),
        ({"a": "red"}, "a='red' is no list"),
    ],
)
def test_refuses_controls(parameters, message):
    with pytest.raises(ValueError, match=message):
        explore(lambda **values: patch(), **parameters)


def test_takes_24_frames():
    page = explore(patch, shade=np.linspace(0, 1, 6), level=np.linspace(0, 1, 4))._repr_html_()
    assert len(images(page)) == 24


def test_refuses_labels_and_start_that_fit_no_control():
    with pytest.raises(ValueError, match=r"labels names \['shape'\], but the controls are \['shade'\]"):
        explore(patch, shade=[0.1], labels={"shape": "σ"})
    with pytest.raises(ValueError, match=r"start names \['shape'\]"):
        explore(patch, shade=[0.1], start={"shape": 0.1})
    with pytest.raises(ValueError, match=r"start=0.3 is not among the values of shade: \[0.1, 0.2\]"):
        explore(patch, shade=[0.1, 0.2], start={"shade": 0.3})


def test_refuses_what_weighs_more_than_300_kb():
    def draw(seed: int) -> plt.Figure:
        figure = plt.figure()
        figure.figimage(np.random.default_rng(seed).random((800, 1280)))
        return figure

    with pytest.raises(ValueError, match=r"weighs \d+ kB with 2 settings, more than 300 kB; draw fewer"):
        explore(draw, seed=[0, 1])._repr_html_()


def test_refuses_draw_that_returns_no_figure():
    with pytest.raises(TypeError, match=r"at shade = 0.1 it returned Axes; end it with `return figure`"):
        explore(lambda shade: plt.subplots()[1], shade=[0.1])._repr_html_()


def test_refuses_frames_of_different_sizes():
    with pytest.raises(ValueError, match=r"size = 1 gave 256 × 128 pixels and size = 2 gave 512 × 128"):
        explore(patch, size=[1.0, 2.0])._repr_html_()


def test_24_frames_of_two_panels_fit():
    """The heaviest figure that the house style promises: 24 frames, 5 × 4 inches, a histogram and filled curves."""

    def draw(sigma: float, n: int) -> plt.Figure:
        """Two samples and their witness function."""
        x = np.linspace(-4, 5, 200)
        sample = np.random.default_rng(0).normal(size=n)
        figure, (top, bottom) = plt.subplots(2, 1, figsize=(5, 4), sharex=True)
        for name, shift in (("source", 0.0), ("target", 1.2)):
            top.hist(sample + shift, 30, range=(-4, 5), density=True, color=COLORS[name], alpha=0.5, label=name)
        witness = np.exp(-((x - 0) ** 2) / sigma) - np.exp(-((x - 1.2) ** 2) / sigma)
        bottom.plot(x, witness, color=COLORS["model"])
        bottom.fill_between(x, 0, witness, color=COLORS["source"], alpha=0.2)
        bottom.set(ylim=(-1, 1), xlabel="x", ylabel="witness")
        top.legend(loc="upper right")  # to look for the best place can take a busy machine a second, and a warning
        return figure

    exploration = explore(draw, sigma=[0.1, 0.3, 1.0, 3.0, 10.0, 30.0], n=[20, 100, 500, 2000])
    assert len(exploration._repr_html_()) < figures.MAX_BYTES


# --- live, in a running notebook


@pytest.fixture
def reader(monkeypatch):
    """A kernel, and nobody who stores or compares its outputs."""
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=object()))
    monkeypatch.delenv("DEEPTRANSFER_LIVE", raising=False)


def parts(exploration) -> tuple:
    _, sliders, picture, *_ = exploration.widget().children
    return sliders.children, picture


@pytest.mark.usefixtures("reader")
def test_with_a_reader_the_output_is_a_widget_and_the_opening_picture():
    drawn = []

    def draw(shade: float) -> plt.Figure:
        drawn.append(shade)
        return patch(shade)

    data, _ = DisplayFormatter().format(explore(draw, shade=[0.1, 0.2, 0.3], start={"shade": 0.2}))
    assert set(data) == {WIDGET_VIEW, "text/html", "text/plain"}
    assert set(drawn) == {0.2}  # no other setting is drawn before the reader asks for it
    assert len(images(data["text/html"])) == 1
    assert 'type="range"' not in data["text/html"]  # no slider that moves nothing


@pytest.mark.usefixtures("reader")
def test_where_outputs_are_stored_or_compared_there_is_no_widget(monkeypatch):
    monkeypatch.setenv("DEEPTRANSFER_LIVE", KERNEL_ENVIRONMENT["DEEPTRANSFER_LIVE"])
    data, _ = DisplayFormatter().format(explore(patch, shade=[0.1, 0.2]))
    assert set(data) == {"text/html", "text/plain"}
    assert len(images(data["text/html"])) == 2


def test_sliders_draw_between_the_listed_values():
    drawn = []

    def draw(sigma: float, n: int) -> plt.Figure:
        drawn.append((sigma, n))
        return patch(sigma / 10)

    (sigma, n), picture = parts(explore(draw, sigma=[0.1, 1.0, 10.0], n=[2, 10]))
    before = picture.value
    sigma.value, n.value = 0.5, 7
    assert drawn[-1] == (pytest.approx(0.5), 7)
    assert picture.value.split('"')[3] != before.split('"')[3]
    assert "sigma = 0.5, n = 7" in picture.value
    assert plt.get_fignums() == []


def test_sliders_suit_the_values():
    def kinds(**parameters) -> str:
        return type(parts(explore(lambda **values: patch(), **parameters))[0][0]).__name__

    assert kinds(a=[1, 5]) == "IntSlider"
    assert kinds(a=[0.0, 1.0]) == "FloatSlider"
    assert kinds(a=[0.1, 1.0, 10.0]) == "FloatLogSlider"
    assert kinds(a=["mean", "wasserstein"]) == "SelectionSlider"
    assert kinds(a=[True, False]) == "SelectionSlider"
    assert kinds(a=[0.1, 1.0, 10.0], between=False) == "SelectionSlider"


def test_sliders_open_on_start_with_their_words():
    (slider,), _ = parts(explore(patch, shade=[0.1, 0.2, 0.3], start={"shade": 0.2}, labels={"shade": "σ"}))
    assert (slider.value, slider.description) == (0.2, "σ")


# --- pictures in a notebook


def test_pictures_have_one_width_twice_the_pixels_and_white_ground():
    figure, ax = plt.subplots(figsize=(5, 3))
    ax.plot(np.random.default_rng(0).random(50))
    png, shown_at = figures._shown(figure)
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    assert (picture.size, shown_at) == ((1280, 768), {"width": 640, "height": 384})
    assert picture.getpixel((0, 0)) == (255, 255, 255, 255)
    assert len(png) <= 50_000
    assert pictures.boxes_of(png) == []


def test_pictures_say_where_their_colours_are_kept_in_the_dark():
    figure, (left, right) = plt.subplots(1, 2, figsize=(4, 2), layout="none")
    left.set_position([0.25, 0.1, 0.25, 0.5])
    left.imshow(np.eye(3), aspect="auto")
    right.plot([0, 1])
    (box,) = pictures.boxes_of(figures._png_of(figure))
    np.testing.assert_allclose(box, [25, 40, 25, 50], atol=0.1)
    assert pictures.kept_boxes([box]).startswith('<i style="left: 25')


@pytest.mark.parametrize(("side", "kept"), [(64, True), (28, False)])
def test_a_rare_colour_of_a_photograph_stays_and_small_images_take_few_colours(side, kept):
    """Sixty shades of blue and grey are many pixels, one yellow is few: among 64 colours it is mixed with a grey."""
    draw = np.random.default_rng(0)
    photograph = draw.uniform(0, 1, (side, side, 1)) * np.array([0.5, 0.7, 1.0]) + draw.uniform(
        -0.1, 0.1, (side, side, 3)
    )
    photograph = photograph.clip(0, 1)
    photograph[5:7, 5:7] = (1, 0.85, 0.1)
    figure, ax = plt.subplots(figsize=(2, 2))
    ax.imshow(photograph, interpolation="nearest")
    ax.set_axis_off()
    picture = Image.open(io.BytesIO(figures._png_of(figure))).convert("RGB")
    plt.close(figure)
    assert (len(picture.getcolors(257)) > 64) == kept
    if kept:
        yellow = np.abs(np.asarray(picture).astype(int) - (255, 217, 26)).max(-1)
        assert (yellow < 16).sum() > 50


def test_letters_are_no_larger_than_the_text_and_readable_on_a_phone():
    """16 pixels is the text; a phone shows 390 of the 640 pixels that a figure is wide."""
    sizes = [mpl.rcParams[f"{name}size"] for name in ("font.", "axes.label", "axes.title", "xtick.label")]
    sizes.append(mpl.rcParams["legend.fontsize"])
    pixels = [size / 72 / pictures.WIDTH * pictures.TEXT_PIXELS for size in sizes]
    assert max(pixels) <= 16
    assert min(pixels) * 390 / 640 >= 9


# --- house style


def linear(color: str) -> np.ndarray:
    value = np.array(mpl.colors.to_rgb(color))
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(rgb, 0, 1) / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira and Fernandes (2009): what full protanopia, deuteranopia and tritanopia leave of linear RGB
SIGHT = {
    "full": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_are_told_apart_by_colour_blind_readers(sight):
    seen = {name: lab(np.array(SIGHT[sight]) @ linear(COLORS[name])) for name in MARKERS}
    for a, b in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[a] - seen[b]) > 15, (a, b)


def turned(color: str) -> str:
    """What `invert(1) hue-rotate(180deg)` makes of a colour, the dark page's part of the house style."""
    hue = [[-0.574, 1.43, 0.144], [0.426, 0.43, 0.144], [0.426, 1.43, -0.856]]
    return mpl.colors.to_hex(np.clip(np.array(hue) @ (1 - np.array(mpl.colors.to_rgb(color))), 0, 1))


@pytest.mark.parametrize(("seen", "ground"), [(str, COLORS["face"]), (turned, "#121212")], ids=["light", "dark"])
def test_colours_stand_out_from_the_ground(seen, ground):
    """WCAG asks a contrast of 3 for graphics and 4.5 for text."""
    weights = [0.2126, 0.7152, 0.0722]
    below = np.dot(weights, linear(ground))
    for name in [*MARKERS, "ink"]:
        above = np.dot(weights, linear(seen(COLORS[name])))
        contrast = (max(above, below) + 0.05) / (min(above, below) + 0.05)
        assert contrast > (4.5 if name == "ink" else 3.0), name


def test_markers_repeat_the_meaning_of_colours():
    assert len(set(MARKERS.values())) == len(MARKERS)
    assert set(MARKERS) == set(COLORS) - {"ink", "face"}


def test_figures_are_opaque_and_light():
    figure, ax = plt.subplots()
    scatter_domains(
        np.random.default_rng(0).normal(size=(400, 2)), np.random.default_rng(1).normal(size=(400, 2)), ax=ax
    )
    png = figures._png_of(figure)
    assert len(png) <= 150_000
    assert np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))[..., 3].min() == 255


def test_svg_repeats():
    def svg() -> bytes:
        figure, ax = plt.subplots()
        ax.plot([0, 1], clip_on=True)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
        return file.getvalue()

    assert svg() == svg()


# --- plots


def test_image_grid_draws_every_image_grey_or_coloured():
    rng = np.random.default_rng(0)
    rows = {
        "source": torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        "target": rng.random((2, 3, 8, 8)),
        "plain": rng.random((4, 8, 8)),
    }
    figure = image_grid(rows, labels={"target": [7, 1]})
    drawn = [ax.images[0].get_array() for ax in figure.axes if ax.images]
    expected = [image for batch in rows.values() for image in np.asarray(batch, dtype=float)]
    assert len(drawn) == 9
    for array, image in zip(drawn, expected, strict=True):
        channels_last = image.transpose(1, 2, 0) if image.ndim == 3 else image
        np.testing.assert_allclose(np.squeeze(array), np.squeeze(channels_last))
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == ["7", "1"]


@pytest.mark.parametrize("shape", [(8, 8), (2, 2, 8, 8), (0, 8, 8), (2, 1, 3, 8, 8)])
def test_image_grid_names_a_wrong_shape(shape):
    with pytest.raises(ValueError, match=re.escape(f"images['pen'] has shape {shape}, wanted (n, h, w)")):
        image_grid({"pen": np.zeros(shape)})


def test_image_grid_refuses_no_rows():
    with pytest.raises(ValueError, match="no row"):
        image_grid({})


def test_scatter_gives_each_domain_its_colour_and_points():
    source, target = np.random.default_rng(0).random((2, 5, 2))
    ax = scatter_domains(source, torch.from_numpy(target))
    for collection, name, points in zip(ax.collections, ("source", "target"), (source, target), strict=True):
        np.testing.assert_array_equal(collection.get_offsets(), points)
        assert mpl.colors.same_color(collection.get_facecolor()[0][:3], COLORS[name])
    with pytest.raises(ValueError, match=r"target has shape \(5, 3\)"):
        scatter_domains(source, np.zeros((5, 3)))


def test_bars_say_mean_and_standard_deviation_and_show_every_run():
    ax = bars_with_interval({"source only": [60.0, 70.0, 80.0], "DAN": [90.0]})
    assert [text.get_text() for text in ax.texts] == ["70.0 ± 10.0 %", "90.0 %"]
    assert [bar.get_width() for bar in ax.patches] == [70.0, 90.0]
    runs = [line.get_xdata() for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_array_equal(np.concatenate(runs), [60, 70, 80, 90])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["source only", "DAN"]
    assert mpl.colors.same_color(ax.patches[0].get_facecolor()[:3], COLORS["source"])
    assert mpl.colors.same_color(ax.patches[1].get_facecolor()[:3], COLORS["model"])
    assert ax.yaxis_inverted()


def test_bars_need_runs():
    with pytest.raises(ValueError, match=r"at least one run, got \{'DAN': 0\}"):
        bars_with_interval({"DAN": []})
    with pytest.raises(ValueError, match=r"at least one run, got \{\}"):
        bars_with_interval({})


def test_curves_colour_by_meaning_and_band_over_seeds():
    ax = curves([0, 1, 2], {"MMD": [3, 2, 1], "target accuracy": [[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]]})
    mmd, target = ax.lines
    assert (mmd.get_color(), mmd.get_marker()) == (COLORS["model"], MARKERS["model"])
    assert (target.get_color(), target.get_marker()) == (COLORS["target"], MARKERS["target"])
    np.testing.assert_array_equal(target.get_ydata(), [2, 3, 4])
    (band,) = ax.collections
    np.testing.assert_allclose(band.get_datalim(ax.transData).ymin, 2 - np.sqrt(2))
    with pytest.raises(ValueError, match=r"series\['MMD'\] has 2 values for 3 places"):
        curves([0, 1, 2], {"MMD": [1, 2]})
