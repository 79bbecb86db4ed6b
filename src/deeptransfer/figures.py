r"""The house style, a few plots that several chapters share, and figures that the reader moves.

This module only draws: it knows nothing of networks, losses or domains, and takes arrays, tensors or plain lists.

Colours mean the same thing in every chapter, and so do marker shapes, so that no figure rests on colour alone:
the source is a blue circle, the target an orange triangle, whatever a model says a green square.
"""

from __future__ import annotations

import html
import io
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image, ImageFilter
from PIL.PngImagePlugin import PngInfo

from deeptransfer.live import is_live
from deeptransfer.pictures import DPI, KEPT, STYLE, TEXT_PIXELS, WIDTH, Boxes, picture_html, plate

__all__ = [
    "COLORS",
    "MARKERS",
    "Exploration",
    "bars_with_interval",
    "curves",
    "explore",
    "image_grid",
    "scatter_domains",
    "use_house_style",
]

#: Each name has one meaning in the whole book. Colour-blind readers tell them apart (after Okabe and Ito, and Tol), and
#: each stands out from the face, on a light page and, turned over, on a dark one.
COLORS = {
    "source": "#0072B2",  # blue
    "target": "#D55E00",  # vermilion
    "model": "#009E73",  # bluish green: what a model computes
    "accent": "#882255",  # wine: the one thing to look at
    "other": "#332288",  # indigo: one more line, without a meaning of its own
    "neutral": "#6B7280",  # grey: references and helpers
    "ink": "#24292F",
    "face": "#FFFFFF",
}
MARKERS = {"source": "o", "target": "^", "model": "s", "accent": "D", "other": "v", "neutral": "P"}

Setting = Mapping[str, Any]  # name of each control and its value

MAX_CONTROLS = 2
MAX_FRAMES = 24
MAX_BYTES = 300_000
SHADES = (64, 32, 16)  # colours of a picture; fewer where a figure with sliders would be too heavy
PHOTOGRAPH = 48, 256  # pixels of a side from which a coloured image is one, and the colours of a picture that shows it


def use_house_style() -> None:
    """Set matplotlib's defaults for the book; call it once at the top of a notebook.

    A figure is 5 inches wide and is shown as wide as the text, 640 pixels: its letters of 9 points are then as large as
    those of the text, and still 9 pixels high on a phone. Two panels share that width. In a notebook a figure becomes a
    picture of the same size whatever is in it, sharp on fine screens, and of few colours, so that it is light.
    """
    mpl.rcParams.update(
        {
            "figure.figsize": (WIDTH, 3.2),
            "figure.dpi": TEXT_PIXELS / WIDTH,
            "figure.facecolor": COLORS["face"],
            "figure.constrained_layout.use": True,
            "figure.constrained_layout.h_pad": 0.05,
            "figure.constrained_layout.w_pad": 0.05,
            "savefig.dpi": DPI,
            "axes.facecolor": COLORS["face"],
            "axes.edgecolor": COLORS["neutral"],
            "axes.labelcolor": COLORS["ink"],
            "axes.labelsize": 9,
            "axes.titlesize": 9,
            "axes.titleweight": "bold",
            "axes.titlecolor": COLORS["ink"],
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.8,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.prop_cycle": cycler(
                color=[COLORS[name] for name in ("source", "target", "model", "accent", "other", "neutral")]
            ),
            "figure.titlesize": 9,
            "figure.titleweight": "bold",
            "grid.color": "#E3E3E3",
            "grid.linewidth": 0.7,
            "font.size": 9,
            "text.color": COLORS["ink"],
            "xtick.color": COLORS["ink"],
            "ytick.color": COLORS["ink"],
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5,
            "legend.fontsize": 8.5,
            "legend.facecolor": COLORS["face"],
            "legend.edgecolor": "none",
            "legend.framealpha": 0.85,
            "legend.borderpad": 0.2,
            "legend.handlelength": 1.6,
            "lines.linewidth": 1.8,
            "lines.markersize": 5,
            "image.cmap": "cividis",
            "svg.hashsalt": "deeptransfer",  # the same ids in the same SVG, run after run
        }
    )
    if "inline" in mpl.get_backend():
        _show_figures_our_way()


def _show_figures_our_way() -> None:
    """Replace what the inline backend makes of a figure, cropped to its ink and heavy."""
    import matplotlib_inline.backend_inline  # noqa: F401  first, for it registers its own way when it is imported
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    if shell is None or shell.display_formatter is None:
        return
    ways = shell.display_formatter.formatters
    ways["image/png"].for_type(Figure, _shown)
    if is_live():
        ways["text/html"].for_type(Figure, _figure_html)


def _figure_html(figure: Figure) -> str:
    return STYLE + picture_html(_png_of(figure), "Figure")


# --- plots that several chapters share --------------------------------------------------------------------------------


def image_grid(images: Mapping[str, ArrayLike], labels: Mapping[str, Sequence[Any]] | None = None) -> Figure:
    r"""Rows of images, one row for each name: domains, methods, or kinds of mistakes.

    Parameters
    ----------
    images : dict
        Name of a row and its images, shape ``(n, h, w)``, ``(n, 1, h, w)`` or ``(n, 3, h, w)``, values in [0, 1].
    labels : dict, optional
        For any of the rows, what to write above each of its images.

    Returns
    -------
    matplotlib.figure.Figure
    """
    rows = {name: np.asarray(batch, dtype=float) for name, batch in images.items()}
    for name, batch in rows.items():
        if batch.ndim not in (3, 4) or len(batch) == 0 or (batch.ndim == 4 and batch.shape[1] not in (1, 3)):
            raise ValueError(
                f"images[{name!r}] has shape {batch.shape}, wanted (n, h, w), (n, 1, h, w) or (n, 3, h, w)"
            )
    if not rows:
        raise ValueError("images={} has no row to draw")
    columns = max(len(batch) for batch in rows.values())
    width = mpl.rcParams["figure.figsize"][0]
    heights = [
        width / columns + (0.6 if labels and name in labels else 0.35) for name in rows
    ]  # inches, with the words
    figure = plt.figure(figsize=(width, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, (name, batch) in zip(parts, rows.items(), strict=True):
        part.set_facecolor("none")
        part.suptitle(name, x=0.015, ha="left", fontsize=11.5, weight="bold", color=COLORS[_domain(name) or "ink"])
        for column, ax in enumerate(part.subplots(1, columns, squeeze=False)[0]):
            ax.set_axis_off()
            if column < len(batch):
                image = batch[column].squeeze(0) if batch.ndim == 4 and batch.shape[1] == 1 else batch[column]
                ax.imshow(image.transpose(1, 2, 0) if image.ndim == 3 else image, cmap="gray", vmin=0, vmax=1)
                if labels and name in labels:
                    ax.set_title(str(labels[name][column]), fontsize=10, weight="normal", loc="center", pad=3)
    return figure


def scatter_domains(source: ArrayLike, target: ArrayLike, ax: Axes | None = None, **style: Any) -> Axes:
    r"""Points of both domains in the plane: source as blue discs, target as orange triangles.

    Parameters
    ----------
    source, target : array
        Shapes ``(n, 2)`` and ``(m, 2)``.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.
    **style
        Passed on to ``Axes.scatter``.
    """
    ax = ax or plt.subplots()[1]
    for name, points in (("source", source), ("target", target)):
        xy = np.asarray(points, dtype=float)
        if xy.ndim != 2 or xy.shape[1] != 2:
            raise ValueError(f"{name} has shape {xy.shape}, wanted (n, 2)")
        look = {"s": 22, "alpha": 0.75, "linewidths": 0.5, "edgecolors": COLORS["face"], **style}
        ax.scatter(*xy.T, color=COLORS[name], marker=MARKERS[name], label=name, **look)
    ax.legend(markerscale=1.5)
    return ax


def bars_with_interval(rows: Mapping[str, Sequence[float]], ax: Axes | None = None, unit: str = "%") -> Axes:
    r"""One bar for each method: the mean over its runs, ± one standard deviation, and every run as a dot.

    Parameters
    ----------
    rows : dict
        Name of a method and its results, one for each seed. A name that begins with "source" or "target" takes that
        domain's colour.
    ax : matplotlib Axes, optional
        Where to draw; by default a new figure as high as the rows need.
    unit : str
        Written behind the means.
    """
    if not rows or any(len(runs) == 0 for runs in rows.values()):
        raise ValueError(
            f"every bar needs at least one run, got { ({name: len(runs) for name, runs in rows.items()}) }"
        )
    if ax is None:
        ax = plt.subplots(figsize=(mpl.rcParams["figure.figsize"][0], 0.7 + 0.42 * len(rows)))[1]
    for y, (name, runs) in enumerate(rows.items()):
        values = np.asarray(runs, dtype=float)
        mean, sd = values.mean(), values.std(ddof=1) if len(values) > 1 else None
        color = COLORS[_domain(name) or "model"]
        ax.barh(y, mean, height=0.7, color=color, alpha=0.3)
        ax.errorbar(mean, y, xerr=sd, color=COLORS["ink"], capsize=5, linewidth=1.4)
        ax.plot(values, y + np.linspace(-0.2, 0.2, len(values)), "o", color=color, markersize=5, mec=COLORS["face"])
        words = f"{mean:.1f}" + (f" ± {sd:.1f}" if sd is not None else "") + f" {unit}".rstrip()
        ax.annotate(words, (0, y), (6, 0), textcoords="offset points", va="center", fontsize=10)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_xlim(left=0)
    ax.invert_yaxis()  # the first method on top
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    return ax


def curves(x: ArrayLike, series: Mapping[str, ArrayLike], ax: Axes | None = None) -> Axes:
    r"""Lines over steps, or over anything else on the x axis.

    Parameters
    ----------
    x : array
        Shape ``(n,)``.
    series : dict
        Name of a line and its values: ``(n,)``, or ``(seeds, n)`` for a mean line in a band of one standard deviation.
        A name that begins with "source" or "target" takes that domain's colour.
    ax : matplotlib Axes, optional
        Where to draw; a new figure by default.
    """
    ax = ax or plt.subplots()[1]
    x = np.asarray(x, dtype=float)
    others = itertools.cycle([(COLORS[name], MARKERS[name]) for name in ("model", "accent", "other", "neutral")])
    for name, values in series.items():
        y = np.atleast_2d(np.asarray(values, dtype=float))
        if y.shape[-1] != len(x):
            raise ValueError(f"series[{name!r}] has {y.shape[-1]} values for {len(x)} places on the x axis")
        domain = _domain(name)
        color, marker = (COLORS[domain], MARKERS[domain]) if domain else next(others)
        ax.plot(x, y.mean(0), color=color, marker=marker, markevery=max(1, len(x) // 6), label=name)
        if len(y) > 1:
            ax.fill_between(
                x, y.mean(0) - y.std(0, ddof=1), y.mean(0) + y.std(0, ddof=1), color=color, alpha=0.18, lw=0
            )
    ax.legend()
    return ax


def _domain(name: str) -> str | None:
    """The domain that a row or line is about, from the word its name begins with."""
    return next((domain for domain in ("source", "target") if name.lower().startswith(domain)), None)


# --- figures the reader moves -----------------------------------------------------------------------------------------


class Exploration:
    r"""What :func:`explore` returns; a notebook shows it as widgets while it runs, and stores it as HTML.

    Attributes
    ----------
    parameters : dict
        Name of each control and the values it takes.
    """

    def __init__(
        self,
        draw: Callable[..., Figure],
        parameters: Mapping[str, Iterable[Any]],
        labels: Mapping[str, str],
        start: Mapping[str, Any],
        alt: str | Callable[..., str] | None,
        caption: str | None,
        between: bool,
    ) -> None:
        self.parameters = {name: _values(name, values) for name, values in parameters.items()}
        count = math.prod(len(values) for values in self.parameters.values())
        sizes = " × ".join(f"{name}: {len(values)}" for name, values in self.parameters.items())
        if not 1 <= len(self.parameters) <= MAX_CONTROLS:
            raise ValueError(
                f"an interactive figure has one or two controls, got {len(self.parameters)} ({sizes or 'none'}); "
                "hold the others fixed inside draw"
            )
        if count > MAX_FRAMES:
            raise ValueError(
                f"{count} frames ({sizes}) are too many for a page; keep at most {MAX_FRAMES} settings in all"
            )
        for given, what in ((labels, "labels"), (start, "start")):
            if unknown := set(given) - set(self.parameters):
                raise ValueError(f"{what} names {sorted(unknown)}, but the controls are {list(self.parameters)}")
        for name, value in start.items():
            if value not in self.parameters[name]:
                raise ValueError(f"start={value!r} is not among the values of {name}: {self.parameters[name]}")
        self._draw, self._alt, self._caption, self._between = draw, alt, caption, between
        self._labels = {name: labels.get(name, name) for name in self.parameters}
        self._start = {name: start.get(name, values[0]) for name, values in self.parameters.items()}

    def __repr__(self) -> str:
        controls = ", ".join(f"{n}=[{', '.join(map(_text, values))}]" for n, values in self.parameters.items())
        return f"<Exploration of {controls}>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """With a reader there, widgets, and beside them the opening frame for viewers without; else nothing more."""
        if not is_live():
            return {}
        opening = picture_html(_png(*self._render(self._start)), self.alt_text(**self._start))
        return {**self.widget()._repr_mimebundle_(), "text/html": self._page([(self._start, opening)])}

    def _repr_html_(self) -> str:
        return self._stored

    @cached_property
    def _stored(self) -> str:
        """The page with all settings, in fewer shades where it is heavy."""
        drawn = self._drawings()
        for shades in dict.fromkeys((_colors(drawn[0][1]), *SHADES)):
            page = self._page(
                [
                    (setting, plate(frame, "webp", drawn[0][1].size, self.alt_text(**setting), boxes))
                    for setting, frame, boxes in _frames(drawn, self._start, shades)
                ]
            )
            if len(page.encode()) <= MAX_BYTES:
                return page
        raise ValueError(
            f"the figure weighs {len(page.encode()) // 1000} kB with {len(drawn)} settings, more than "
            f"{MAX_BYTES // 1000} kB; draw fewer settings, a smaller figsize or fewer points and shades"
        )

    @cached_property
    def _places(self) -> list[Any] | None:
        """Where the axes are when the figure opens: they stay there, and no layout is computed again."""
        with _no_figure_left():
            return _placed(self._drawn(self._start))

    def _drawn(self, setting: Mapping[str, Any]) -> Figure:
        figure = self._draw(**setting)
        if not isinstance(figure, Figure):
            raise TypeError(
                f"draw must return a matplotlib Figure, but at {_setting(setting)} it returned "
                f"{type(figure).__name__}; end it with `return figure`"
            )
        return figure

    def _render(self, setting: Mapping[str, Any]) -> tuple[Image.Image, Boxes]:
        """The picture at a setting, and where it shows images."""
        with _no_figure_left():
            figure = self._drawn(setting)
            if self._places is not None and len(self._places) == len(figure.axes):
                figure.set_layout_engine("none")
                for ax, place in zip(figure.axes, self._places, strict=True):
                    ax.set_position(place)
            return _pixels(figure), _image_boxes(figure)

    def _settings(self) -> Iterator[dict[str, Any]]:
        for values in itertools.product(*self.parameters.values()):
            yield dict(zip(self.parameters, values, strict=True))

    def alt_text(self, **values: Any) -> str:
        """Words for the frame at a setting: what a reader who does not see it should know."""
        if callable(self._alt):
            return str(self._alt(**values))
        words = (
            self._alt or (self._draw.__doc__ or "").strip().split("\n\n")[0] or self._caption or "Interactive figure"
        )
        setting = _setting({self._labels[name]: value for name, value in values.items()})
        return f"{' '.join(words.split()).rstrip('.')}. At {setting}."

    def widget(self) -> Any:
        """The same figure with sliders that draw afresh, also between the listed values; it needs a kernel.

        Returns
        -------
        ipywidgets.VBox
            Sliders, picture and caption.
        """
        import ipywidgets  # slow to import, and only a running notebook needs it

        sliders = {
            name: _slider(
                values,
                self._start[name],
                self._between,
                description=self._labels[name],
                style={"description_width": "initial"},
            )
            for name, values in self.parameters.items()
        }
        picture = ipywidgets.HTML()

        def show(_change: Any = None) -> None:
            setting = {name: slider.value for name, slider in sliders.items()}
            drawn, boxes = self._render(setting)
            picture.value = picture_html(_png(drawn, boxes, compress_level=1), self.alt_text(**setting))

        for slider in sliders.values():
            slider.observe(show, names="value")  # while one drawing is made, the front end keeps the last move only
        show()
        caption = [ipywidgets.HTML(html.escape(self._caption))] if self._caption else []
        box = ipywidgets.VBox([ipywidgets.HTML(STYLE + _LIVE), ipywidgets.Box([*sliders.values()]), picture, *caption])
        return box.add_class("explore-live")

    def _drawings(self) -> list[tuple[Setting, Image.Image, Boxes]]:
        """Every setting, its picture and where that shows images."""
        drawn: list[tuple[Setting, Image.Image, Boxes]] = [(s, *self._render(s)) for s in self._settings()]
        first, (width, height) = drawn[0][0], drawn[0][1].size
        for setting, picture, _ in drawn:
            if picture.size != (width, height):
                raise ValueError(
                    f"frames must have one size, but {_setting(first)} gave {width} × {height} pixels and "
                    f"{_setting(setting)} gave {picture.width} × {picture.height}; use one figsize for all settings"
                )
        return drawn

    def _page(self, frames: Sequence[tuple[Setting, str]]) -> str:
        """As HTML: the pictures, and above them sliders if there are several."""
        pictures = "\n".join(
            _FRAME.format(
                kind='class="explore-start"' if setting == self._start else 'hidden="hidden"',
                picture=picture,
            )
            for setting, picture in frames
        )
        controls = "".join(
            _CONTROL.format(
                label=html.escape(self._labels[name]),
                last=len(values) - 1,
                index=values.index(self._start[name]),
                text=html.escape(_text(self._start[name])),
                texts=html.escape(json.dumps([_text(value) for value in values], ensure_ascii=False)),
            )
            for name, values in self.parameters.items()
            if len(frames) > 1
        )
        caption = f"<figcaption>{html.escape(self._caption)}</figcaption>" if self._caption else ""
        start = html.escape(_setting({self._labels[name]: value for name, value in self._start.items()}))
        return _PAGE.format(
            style=STYLE, css=_CSS, frames=pictures, controls=controls, start=start, caption=caption, script=_SCRIPT
        )


def explore(
    draw: Callable[..., Figure],
    *,
    labels: Mapping[str, str] | None = None,
    start: Mapping[str, Any] | None = None,
    alt: str | Callable[..., str] | None = None,
    caption: str | None = None,
    between: bool = True,
    **parameters: Iterable[Any],
) -> Exploration:
    r"""Let the reader move one or two parameters of a figure.

    In a running notebook each move draws afresh, at any setting between the listed ones as well. What the book stores
    is a single piece of HTML: a picture for every setting, inside it, below labelled sliders. It needs no kernel and no
    network, works with the keyboard and a screen reader, and prints the frame it starts on.

    Parameters
    ----------
    draw : callable
        ``draw(**values)`` returns a new matplotlib figure, in 0.3 seconds at most if it is to follow the reader's hand:
        compute outside what does not change. Fix the axes' limits in it, or the axes jump between frames.
    labels : dict, optional
        Name of a parameter and the words beside its slider; the name itself by default.
    start : dict, optional
        The setting to open on: choose the one that makes the point. The first value of each parameter by default.
    alt : str or callable, optional
        Words instead of the picture. A string is followed by the setting; a callable gets the values as ``draw`` does
        and says what is to be seen there. Default: the first paragraph of ``draw``'s docstring.
    caption : str, optional
        A caption below the picture.
    between : bool
        Whether ``draw`` can draw at numbers between the listed ones. No, where it only looks up what was computed.
    **parameters
        One or two names of arguments of ``draw``, each with the list of its values; at most 24 settings in all.

    Returns
    -------
    Exploration
        Leave it on the last line of a cell.

    Raises
    ------
    ValueError
        No or more than two parameters, no values, more than 24 frames, or ``labels`` and ``start`` that fit no
        parameter; and, when it is stored, more than 300 kB or frames of different sizes.
    TypeError
        When it is drawn: ``draw`` returned something else than a figure.
    """
    return Exploration(draw, parameters, labels or {}, start or {}, alt, caption, between)


def _values(name: str, values: Iterable[Any]) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{name}={values!r} is no list of values; write {name}=[…]")
    plain = [value.item() if hasattr(value, "item") else value for value in values]  # no NumPy or torch scalars in draw
    if not plain:
        raise ValueError(f"{name}=[] has no value to draw")
    return plain


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _setting(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {_text(value)}" for name, value in values.items())


@contextmanager
def _no_figure_left() -> Iterator[None]:
    """Close what is opened inside: the inline backend would show it as well, and pyplot would keep it for ever."""
    before = set(plt.get_fignums())
    try:
        yield
    finally:
        for number in set(plt.get_fignums()) - before:
            plt.close(number)


def _placed(figure: Figure) -> list[Any] | None:
    """Where its axes are, None if their places alone do not tell the layout."""
    if figure.subfigs or figure.get_suptitle():
        return None
    figure.draw_without_rendering()
    return [ax.get_position(original=True) for ax in figure.axes]


def _frames(
    drawn: Sequence[tuple[Setting, Image.Image, Boxes]], start: Setting, shades: int
) -> list[tuple[Setting, bytes, Boxes]]:
    """The opening picture as WebP, and of each other what it changes, clear where both are alike; with one palette."""
    width, height = drawn[0][1].size
    sheet = Image.new("RGB", (width, height * len(drawn)))
    sheet.info = drawn[0][1].info
    for row, (_, picture, _) in enumerate(drawn):
        sheet.paste(picture, (0, row * height))
    pixels = np.asarray(_in_few_colors(sheet, shades).convert("RGB")).reshape(len(drawn), height, width, 3)
    below = pixels[[setting for setting, _, _ in drawn].index(start)]
    frames = []
    for (setting, _, boxes), frame in zip(drawn, pixels, strict=True):
        if setting != start:
            changed = Image.fromarray((frame != below).any(-1))
            # three pixels more on each side, or on a coarse screen the edges would keep a shade of what lies below
            mask = np.asarray(changed.convert("L").filter(ImageFilter.MaxFilter(7)))
            frame = np.dstack([np.where(mask[..., None], frame, 0).astype(np.uint8), mask])
        frames.append((setting, _webp(frame), boxes))
    return frames


def _webp(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="WEBP", lossless=True, quality=100, method=4)
    return file.getvalue()


# --- pictures ---------------------------------------------------------------------------------------------------------


def _pixels(figure: Figure) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, format="rgba", dpi=DPI)
    width, height = (int(round(inches * DPI, 6)) for inches in figure.get_size_inches())
    picture = Image.frombytes("RGBA", (width, height), file.getvalue()).convert("RGB")
    shapes = [np.asarray(image.get_array()).shape for ax in figure.axes for image in ax.images]
    picture.info["photograph"] = any(len(shape) == 3 and min(shape[:2]) >= PHOTOGRAPH[0] for shape in shapes)
    return picture


def _colors(picture: Image.Image) -> int:
    """Of how many colours a picture may be."""
    return PHOTOGRAPH[1] if picture.info.get("photograph") else SHADES[0]


def _in_few_colors(picture: Image.Image, colors: int) -> Image.Image:
    if picture.info.get("photograph"):
        # Colours that are rare but far from the others are kept, which the usual choice mixes to grey; from every ninth
        # pixel, for speed.
        small = picture.resize((picture.width // 3, picture.height // 3), Image.Resampling.NEAREST)
        chosen = small.quantize(colors, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
        few = picture.quantize(palette=chosen, dither=Image.Dither.NONE)
    else:
        few = picture.quantize(colors, dither=Image.Dither.NONE)
    palette, face = few.getpalette() or [], int(np.asarray(few)[0, 0])
    palette[3 * face : 3 * face + 3] = np.asarray(picture)[0, 0].tolist()  # the ground itself, not a shade near it
    few.putpalette(palette)
    return few


def _image_boxes(figure: Figure) -> Boxes:
    """Where a figure shows images, whose colours mean something on a dark page as well."""
    full = figure.bbox
    shares = [
        (box.x0 / full.width, 1 - box.y1 / full.height, box.width / full.width, box.height / full.height)
        for ax in figure.axes
        if ax.images or any(isinstance(part, QuadMesh) for part in ax.collections)
        for box in [ax.get_window_extent()]
    ]
    return [[round(100 * share, 2) for share in box] for box in shares]


def _png(picture: Image.Image, boxes: Boxes, **options: Any) -> bytes:
    file, text = io.BytesIO(), PngInfo()
    if boxes:
        text.add_text(KEPT, json.dumps(boxes))
    picture.save(file, format="PNG", pnginfo=text, **(options or {"optimize": True}))
    return file.getvalue()


def _png_of(figure: Figure) -> bytes:
    picture = _pixels(figure)
    return _png(_in_few_colors(picture, _colors(picture)), _image_boxes(figure))


def _shown(figure: Figure) -> tuple[bytes, dict[str, int]]:
    """For a notebook: the picture, and the size at which to show it."""
    width, height = figure.get_size_inches() * TEXT_PIXELS / WIDTH
    return _png_of(figure), {"width": round(width), "height": round(height)}


def _slider(values: Sequence[Any], start: Any, between: bool, **options: Any) -> Any:
    """An ipywidgets slider: continuous over numbers (in decades where they span many), stepwise over anything else."""
    import ipywidgets

    kinds = {type(value) for value in values} if between else set()
    if kinds == {int}:
        return ipywidgets.IntSlider(start, min(values), max(values), **options)
    if kinds and kinds <= {int, float}:
        low, high = min(values), max(values)
        if low > 0 and high / low >= 20:
            return ipywidgets.FloatLogSlider(start, min=math.log10(low), max=math.log10(high), step=0.01, **options)
        return ipywidgets.FloatSlider(start, min=low, max=high, step=(high - low) / 100 or 1.0, **options)
    return ipywidgets.SelectionSlider(value=start, options=[(_text(value), value) for value in values], **options)


_LIVE = f"""<style>
.explore-live {{ max-width: {TEXT_PIXELS}px; }}
.explore-live > .widget-box {{ flex-wrap: wrap; column-gap: 2rem; }}
.explore-live > .widget-box > .widget-inline-hbox {{ flex: 1 1 15rem; flex-wrap: wrap; height: auto; margin: 0; }}
.explore-live .widget-inline-hbox > .widget-label {{ flex: 1 0 100%; max-width: none; text-align: left; }}
</style>
"""

# Everything that a page needs is in the output itself, so that the same bytes work in the built book, in JupyterLab and
# in a file on a stick. There are no ids: a copy of the figure on the same page cannot collide. Text takes the page's
# own colour, so light and dark need no rule; the book's theme puts outputs on a pale card when it is dark, which is
# taken back. Without JavaScript, or in a notebook not yet trusted, where styles are gone as well, `hidden` alone keeps
# the sliders and the other frames away (JupyterLab drops it from untrusted outputs unless it has a value).
_PAGE = """<figure class="explore">
{style}<style>{css}</style>
<div class="explore-controls" hidden="hidden">{controls}</div>
<p class="explore-setting">{start}</p>
<div class="explore-frames">
{frames}
</div>
{caption}
<p class="explore-said" aria-live="polite"></p>
<script>{script}</script>
</figure>"""

_FRAME = "<div {kind}>{picture}</div>"

_CONTROL = """
<div class="explore-control">
<label><span>{label}</span><input type="range" min="0" max="{last}" step="1" value="{index}" autocomplete="off"
 aria-valuetext="{text}" data-texts="{texts}"></label>
<output>{text}</output>
</div>"""

_CSS = (
    f"""
.explore {{ position: relative; margin: 1rem 0; max-width: {TEXT_PIXELS}px; padding: 0; color: inherit; }}
:has(> .explore) {{ background: none !important; color: inherit !important; padding: 0 !important; }}
"""
    + """
.explore .explore-controls:not([hidden]) { display: flex; flex-wrap: wrap; gap: 0 2rem; margin: 0 .25rem .25rem; }
.explore .explore-setting { margin: 0 .25rem .25rem; font-size: .95rem; }
.explore[data-ready] .explore-setting { display: none; }
.explore .explore-control { flex: 1 1 15rem; display: grid; grid-template-columns: 1fr auto; position: relative; }
.explore label { grid-column: 1 / -1; grid-row: 1; margin: 0; font-size: .95rem; line-height: 1.4; }
.explore label span { display: block; padding-right: 5rem; }
.explore input { display: block; width: 100%; height: 1.75rem; margin: 0; cursor: pointer; accent-color: #2b8cc4; }
.explore output { grid-column: 2; grid-row: 1; font-size: .95rem; font-weight: 600; line-height: 1.4; }
.explore figcaption { margin: .5rem .25rem 0; padding: 0; font: inherit; font-size: .95rem; text-align: left; }
.explore figcaption { color: inherit; }
.explore .explore-said { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
@media print {
  .explore { break-inside: avoid; }
  .explore .explore-frames > div, .explore .explore-controls { display: none !important; }
  .explore .explore-frames > .explore-start, .explore[data-ready] .explore-setting { display: block !important; }
}
"""
)

_SCRIPT = """
for (const figure of document.querySelectorAll(".explore:not([data-ready])")) {
  const inputs = [...figure.querySelectorAll("input")], frames = [...figure.querySelector(".explore-frames").children];
  const show = () => {
    let frame = 0;
    for (const input of inputs) {
      const text = JSON.parse(input.dataset.texts)[input.value];
      input.closest(".explore-control").querySelector("output").value = text;
      input.setAttribute("aria-valuetext", text);
      frame = frame * (+input.max + 1) + +input.value;
    }
    frames.forEach((other, i) => { other.hidden = i !== frame; });
    return frames[frame].querySelector("img").alt;
  };
  for (const input of inputs)
    input.addEventListener("input", () => { figure.querySelector(".explore-said").textContent = show(); });
  /* each other frame holds what it changes of the opening one, and shows the rest through */
  const start = figure.querySelector(".explore-start img");
  for (const image of figure.querySelectorAll(".explore-frames [hidden] img"))
    image.style.background = `#fff url(${start.src}) 0 0 / 100% 100%`;
  figure.querySelector(".explore-controls").hidden = false;
  figure.dataset.ready = "";
}
"""
