r"""The house style, a few plots that several chapters share, and figures that the reader moves.

This module only draws: it knows nothing of networks, losses or domains, and takes arrays, tensors or plain lists.

Colours mean the same thing in every chapter, and so do marker shapes, so that no figure rests on colour alone:
the source is a blue circle, the target an orange triangle, whatever a model says a green square.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

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
#: each stands out from the face.
COLORS = {
    "source": "#0072B2",  # blue
    "target": "#D55E00",  # vermilion
    "model": "#009E73",  # bluish green: what a model computes
    "accent": "#882255",  # wine: the one thing to look at
    "other": "#332288",  # indigo: one more line, without a meaning of its own
    "neutral": "#6B7280",  # grey: references and helpers
    "ink": "#24292F",
    "face": "#FBFAF7",
}
MARKERS = {"source": "o", "target": "^", "model": "s", "accent": "D", "other": "v", "neutral": "P"}

MAX_CONTROLS = 2
MAX_FRAMES = 24
MAX_BYTES = 300_000
_FRAME_DPI, _FRAME_COLORS = 150, 64  # of a figure with few frames
_MANY_FRAMES, _MANY_DPI, _MANY_COLORS = 12, 120, 32  # with more than this many, plain ones of 5 × 4 inches still fit


def use_house_style() -> None:
    """Set matplotlib's defaults for the book; call it once at the top of a notebook.

    A figure is 5 inches wide: on a phone of 390 px that leaves letters of about 11 px, on a desk about 18 px. Two
    panels share that width. The face is opaque, so a figure is as readable on a dark page as on a light one.
    """
    mpl.rcParams.update(
        {
            "figure.figsize": (5.0, 3.2),
            "figure.dpi": 144,
            "figure.facecolor": COLORS["face"],
            "figure.constrained_layout.use": True,
            "figure.constrained_layout.h_pad": 0.06,
            "figure.constrained_layout.w_pad": 0.06,
            "savefig.dpi": 144,
            "axes.facecolor": COLORS["face"],
            "axes.edgecolor": COLORS["neutral"],
            "axes.labelcolor": COLORS["ink"],
            "axes.labelsize": 11,
            "axes.titlesize": 11.5,
            "axes.titleweight": "bold",
            "axes.titlecolor": COLORS["ink"],
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.9,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.prop_cycle": cycler(
                color=[COLORS[name] for name in ("source", "target", "model", "accent", "other", "neutral")]
            ),
            "grid.color": "#E4E2DC",
            "grid.linewidth": 0.8,
            "font.size": 11,
            "text.color": COLORS["ink"],
            "xtick.color": COLORS["ink"],
            "ytick.color": COLORS["ink"],
            "xtick.labelsize": 10,
            "ytick.labelsize": 10,
            "legend.fontsize": 10,
            "legend.facecolor": COLORS["face"],
            "legend.edgecolor": "none",
            "legend.framealpha": 0.85,
            "legend.borderpad": 0.2,
            "legend.handlelength": 1.6,
            "lines.linewidth": 2.0,
            "lines.markersize": 6,
            "image.cmap": "cividis",
            "svg.hashsalt": "deeptransfer",  # the same ids in the same SVG, run after run
        }
    )
    if "inline" in mpl.get_backend():
        # The inline backend crops every picture to its ink, so that one longer number changes the picture's size.
        from matplotlib_inline.config import InlineBackend

        InlineBackend.instance().set_trait("print_figure_kwargs", {"bbox_inches": None})


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
    r"""What :func:`explore` returns; a notebook shows it as one self-contained piece of HTML.

    Attributes
    ----------
    parameters : dict
        Name of each control and the values it takes.
    frames : list of bytes
        One palette PNG for each setting; the last control runs fastest.
    """

    def __init__(
        self,
        draw: Callable[..., Figure],
        parameters: Mapping[str, Iterable[Any]],
        labels: Mapping[str, str],
        start: Mapping[str, Any],
        alt: str | Callable[..., str] | None,
        caption: str | None,
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
        self._draw, self._alt, self._caption = draw, alt, caption
        self._labels = {name: labels.get(name, name) for name in self.parameters}
        self._start = {name: start.get(name, values[0]) for name, values in self.parameters.items()}
        dpi, colors = (_FRAME_DPI, _FRAME_COLORS) if count <= _MANY_FRAMES else (_MANY_DPI, _MANY_COLORS)
        self.frames = _palette_frames({_setting(s): _render(draw, s, dpi) for s in self._settings()}, colors)
        self._html = self._page()
        if (weight := len(self._html.encode())) > MAX_BYTES:
            raise ValueError(
                f"the figure weighs {weight // 1000} kB in {count} frames, more than {MAX_BYTES // 1000} kB; "
                "draw fewer settings, a smaller figsize or fewer points and shades"
            )

    def __repr__(self) -> str:
        controls = ", ".join(f"{n}=[{', '.join(map(_text, values))}]" for n, values in self.parameters.items())
        return f"<Exploration of {controls}: {len(self.frames)} frames>"

    def _repr_html_(self) -> str:
        return self._html

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

    def live(self) -> Any:
        """The same figure in a running notebook, drawn afresh at any setting, also between the listed ones.

        Returns
        -------
        ipywidgets.VBox
            The picture and its sliders. Not for stored notebooks: it needs a kernel.
        """
        import ipywidgets  # slow to import, and only a running notebook needs it

        style = {"description_width": "initial"}
        sliders = {
            name: _slider(values, self._start[name], description=self._labels[name], style=style)
            for name, values in self.parameters.items()
        }
        picture = ipywidgets.HTML()

        def show(_change: Any = None) -> None:
            setting = {name: slider.value for name, slider in sliders.items()}
            picture.value = _img(_png(_render(self._draw, setting, _FRAME_DPI)), self.alt_text(**setting))

        for slider in sliders.values():
            slider.observe(show, names="value")
        show()
        return ipywidgets.VBox([picture, *sliders.values()])

    def _page(self) -> str:
        controls = "".join(
            _CONTROL.format(
                label=html.escape(self._labels[name]),
                last=len(values) - 1,
                index=values.index(self._start[name]),
                text=html.escape(_text(self._start[name])),
                texts=html.escape(json.dumps([_text(value) for value in values], ensure_ascii=False)),
            )
            for name, values in self.parameters.items()
        )
        frames = "\n".join(
            _FRAME.format(
                kind='class="explore-start"' if setting == self._start else 'hidden="hidden"',
                img=_img(frame, self.alt_text(**setting)),
            )
            for frame, setting in zip(self.frames, self._settings(), strict=True)
        )
        caption = f"<figcaption>{html.escape(self._caption)}</figcaption>" if self._caption else ""
        start = html.escape(_setting({self._labels[name]: value for name, value in self._start.items()}))
        return _PAGE.format(css=_CSS, frames=frames, controls=controls, start=start, caption=caption, script=_SCRIPT)


def explore(
    draw: Callable[..., Figure],
    *,
    labels: Mapping[str, str] | None = None,
    start: Mapping[str, Any] | None = None,
    alt: str | Callable[..., str] | None = None,
    caption: str | None = None,
    **parameters: Iterable[Any],
) -> Exploration:
    r"""Let the reader move one or two parameters of a figure.

    Every setting is drawn once, now. What the notebook stores is a single piece of HTML: the frames as pictures inside
    it under labelled sliders. It needs no kernel and no network, works with the keyboard and a screen reader, and
    prints the frame it starts on. In a running notebook, ``explore(...).live()`` draws at any setting between the
    listed ones as well.

    Parameters
    ----------
    draw : callable
        ``draw(**values)`` returns a new matplotlib figure. Fix the axes' limits in it, or the axes jump between frames.
    labels : dict, optional
        Name of a parameter and the words beside its slider; the name itself by default.
    start : dict, optional
        The setting to open on: choose the one that makes the point. The first value of each parameter by default.
    alt : str or callable, optional
        Words instead of the picture. A string is followed by the setting; a callable gets the values as ``draw`` does
        and says what is to be seen there. Default: the first paragraph of ``draw``'s docstring.
    caption : str, optional
        A caption below the sliders.
    **parameters
        One or two names of arguments of ``draw``, each with the list of its values; at most 24 settings in all.

    Returns
    -------
    Exploration
        Leave it on the last line of a cell.

    Raises
    ------
    ValueError
        No or more than two parameters, no values, more than 24 frames, more than 300 kB, frames of different sizes, or
        ``labels`` and ``start`` that fit no parameter.
    TypeError
        ``draw`` returned something else than a figure.
    """
    return Exploration(draw, parameters, labels or {}, start or {}, alt, caption)


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


def _render(draw: Callable[..., Figure], setting: Mapping[str, Any], dpi: int) -> Image.Image:
    with _no_figure_left():
        figure = draw(**setting)
        if not isinstance(figure, Figure):
            raise TypeError(
                f"draw must return a matplotlib Figure, but at {_setting(setting)} it returned "
                f"{type(figure).__name__}; end it with `return figure`"
            )
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=dpi)
        return Image.open(file).convert("RGB")


def _palette_frames(pictures: Mapping[str, Image.Image], colors: int) -> list[bytes]:
    """PNGs that share one palette, so that the background is the same in all of them."""
    (first, picture), *others = pictures.items()
    width, height = picture.size
    for setting, other in others:
        if other.size != picture.size:
            raise ValueError(
                f"frames must have one size, but {first} gave {width} × {height} pixels and {setting} gave "
                f"{other.width} × {other.height}; use one figsize for all settings"
            )
    sheet = Image.new("RGB", (width, height * len(pictures)))
    for row, other in enumerate(pictures.values()):
        sheet.paste(other, (0, row * height))
    sheet = sheet.quantize(colors, dither=Image.Dither.NONE)
    return [_png(sheet.crop((0, row * height, width, (row + 1) * height))) for row in range(len(pictures))]


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()


def _img(png: bytes, alt: str) -> str:
    width, height = Image.open(io.BytesIO(png)).size
    data = base64.b64encode(png).decode()
    # decoding=sync: a frame must not flicker in when the slider first reaches it
    return (
        f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt)}" width="{width}" height="{height}" '
        'decoding="sync" style="width: 100%; max-width: 40rem; height: auto">'
    )


def _slider(values: Sequence[Any], start: Any, **options: Any) -> Any:
    """An ipywidgets slider: continuous over numbers (in decades where they span many), stepwise over anything else."""
    import ipywidgets

    options["continuous_update"] = False  # one drawing when the reader lets go, not a queue of them
    kinds = {type(value) for value in values}
    if kinds == {int}:
        return ipywidgets.IntSlider(start, min(values), max(values), **options)
    if kinds <= {int, float}:
        low, high = min(values), max(values)
        if low > 0 and high / low >= 20:
            return ipywidgets.FloatLogSlider(start, min=math.log10(low), max=math.log10(high), step=0.01, **options)
        return ipywidgets.FloatSlider(start, min=low, max=high, step=(high - low) / 100 or 1.0, **options)
    return ipywidgets.SelectionSlider(value=start, options=[(_text(value), value) for value in values], **options)


# Everything that a page needs is in the output itself, so that the same bytes work in the built book, in JupyterLab and
# in a file on a stick. There are no ids: a copy of the figure on the same page cannot collide. Text takes the page's
# own colour, so light and dark need no rule; the book's theme puts outputs on a pale card when it is dark, which is
# taken back. Without JavaScript, or in a notebook not yet trusted, where styles are gone as well, `hidden` alone keeps
# the sliders and the other frames away (JupyterLab drops it from untrusted outputs unless it has a value).
_PAGE = """<figure class="explore">
<style>{css}</style>
<div class="explore-frames">
{frames}
</div>
<div class="explore-controls" hidden="hidden">{controls}</div>
<p class="explore-setting">{start}</p>
{caption}
<p class="explore-hint">In a running notebook, end the cell with <code>.live()</code> to draw at any setting.</p>
<p class="explore-said" aria-live="polite"></p>
<script>{script}</script>
</figure>"""

_FRAME = "<div {kind}>{img}</div>"

_CONTROL = """
<div class="explore-control">
<label><span>{label}</span><input type="range" min="0" max="{last}" step="1" value="{index}" autocomplete="off"
 aria-valuetext="{text}" data-texts="{texts}"></label>
<output>{text}</output>
</div>"""

_CSS = """
.explore { position: relative; margin: 1.25rem 0; max-width: 40rem; padding: 0; color: inherit; }
:has(> .explore) { background: none !important; color: inherit !important; padding: 0 !important; }
.explore img { display: block; margin: 0; padding: 0 !important; }
.explore img { border-radius: 8px !important; background: none !important; }
.explore .explore-controls:not([hidden]) { display: flex; flex-wrap: wrap; gap: 0 2rem; margin: .5rem .25rem 0; }
.explore .explore-setting { margin: .25rem .25rem 0; font-size: .95rem; }
.explore[data-ready] .explore-setting { display: none; }
.explore .explore-control { flex: 1 1 15rem; display: grid; grid-template-columns: 1fr auto; position: relative; }
.explore label { grid-column: 1 / -1; grid-row: 1; margin: 0; font-size: .95rem; }
.explore label span { display: block; padding-right: 5rem; }
.explore input { display: block; width: 100%; height: 2rem; margin: 0; cursor: pointer; accent-color: #2b8cc4; }
.explore output { grid-column: 2; grid-row: 1; font-size: .95rem; font-weight: 600; }
.explore figcaption { margin: .5rem .25rem 0; padding: 0; font: inherit; font-size: .95rem; text-align: left; }
.explore figcaption { color: inherit; }
.explore .explore-hint { display: none; margin: .25rem .25rem 0; font-size: .85rem; }
.jp-Notebook .explore .explore-hint { display: block; }
.explore .explore-said { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
@media print {
  .explore { break-inside: avoid; }
  .explore .explore-frames div, .explore .explore-controls { display: none !important; }
  .explore .explore-frames .explore-start, .explore[data-ready] .explore-setting { display: block !important; }
}
"""

_SCRIPT = """
for (const figure of document.querySelectorAll(".explore:not([data-ready])")) {
  const inputs = [...figure.querySelectorAll("input")], frames = [...figure.querySelectorAll(".explore-frames div")];
  const show = () => {
    let frame = 0;
    for (const input of inputs) {
      const text = JSON.parse(input.dataset.texts)[input.value];
      input.closest(".explore-control").querySelector("output").value = text;
      input.setAttribute("aria-valuetext", text);
      frame = frame * (+input.max + 1) + +input.value;
    }
    frames.forEach((other, i) => { other.hidden = i !== frame; });
    return frames[frame].firstChild.alt;
  };
  for (const input of inputs)
    input.addEventListener("input", () => { figure.querySelector(".explore-said").textContent = show(); });
  figure.querySelector(".explore-controls").hidden = false;
  figure.dataset.ready = "";
}
"""
