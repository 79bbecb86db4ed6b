"""Figures that answer the hand: computed in the page at every move, from the same formula as the library's.

Each figure is one ES module beside this file, in the form that anywidget loads: ``export default { render }``. In a
running notebook anywidget shows it; in a built page, which has no kernel, ``loader.js`` does, with a plain object for
the model. The formulas of a module are its export ``formulas``; tests evaluate them in a browser and compare them with
the library. Nothing here needs PyTorch: the book's front page is built without it.
"""

from __future__ import annotations

import html
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["LiveFigure", "is_live", "names", "share"]

FOLDER = Path(__file__).parent


def is_live() -> bool:
    """Whether a reader runs this in a notebook, who can move widgets.

    Outside a notebook nothing moves; where outputs are stored or compared, ``DEEPTRANSFER_LIVE=0`` says so.
    """
    ipython = sys.modules.get("IPython")
    in_notebook = ipython is not None and hasattr(ipython.get_ipython(), "kernel")
    return in_notebook and os.environ.get("DEEPTRANSFER_LIVE") != "0" and find_spec("ipywidgets") is not None


def names() -> list[str]:
    """All figures, in the order of the alphabet."""
    return sorted(path.stem for path in FOLDER.glob("*.js") if path.stem not in ("drawing", "loader"))


class LiveFigure:
    """A figure that the reader moves.

    Parameters
    ----------
    name : str
        One of :func:`names`.
    caption : str, optional
        What to look at.
    **state
        Where to start, in place of the module's own start.

    Raises
    ------
    ValueError
        If there is no such figure; the message lists those that there are.

    Notes
    -----
    In a running notebook ``figure.state`` is what the reader has set, a dict; writing it moves the figure.
    """

    def __init__(self, name: str, caption: str = "", **state: Any) -> None:
        if name not in names():
            raise ValueError(f"unknown figure {name!r}: there are {', '.join(names())}")
        self.name, self.caption = name, caption
        self._state: Mapping[str, Any] = state
        self._widget: Any = None

    def __repr__(self) -> str:
        return f"<LiveFigure {self.name}>"

    @property
    def state(self) -> dict[str, Any]:
        """What was set, by the reader or from here; empty parts are at the module's start."""
        return dict(self._state if self._widget is None else self._widget.state)

    @state.setter
    def state(self, state: Mapping[str, Any]) -> None:
        self._state = dict(state)
        if self._widget is not None:
            self._widget.state = self._state

    def page(self) -> str:
        """The figure as HTML that needs neither a kernel nor a network; without JavaScript it is a still picture."""
        path = FOLDER / "stills" / f"{self.name}.svg"
        still = path.read_text(encoding="utf-8") if path.exists() else ""
        caption = f"<figcaption>{html.escape(self.caption)}</figcaption>" if self.caption else ""
        return _PAGE.format(
            css=(FOLDER / "live.css").read_text(encoding="utf-8"),
            name=self.name,
            state=html.escape(json.dumps(self._state)),
            still=still.strip(),
            caption=caption,
            drawing=drawing(),
            module=own(self.name),
            loader=(FOLDER / "loader.js").read_text(encoding="utf-8"),
        )

    def widget(self) -> Any:
        """The figure as an anywidget, made once.

        Returns
        -------
        anywidget.AnyWidget
            Its trait ``state`` is the figure's state.
        """
        if self._widget is None:
            import anywidget
            import traitlets

            class Widget(anywidget.AnyWidget):
                _esm = module(self.name)
                _css = (FOLDER / "live.css").read_text(encoding="utf-8")
                state = traitlets.Dict().tag(sync=True)

            self._widget = Widget(state=dict(self._state))
            self._widget.add_class("live")
        return self._widget

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        """A widget where a reader runs the notebook; a page of its own where outputs are stored."""
        bundle = {"text/plain": repr(self)}
        return bundle | (self.widget()._repr_mimebundle_()[0] if is_live() else {"text/html": self.page()})


def drawing() -> str:
    """What all figures draw with, to stand before a figure's own code."""
    return re.sub(r"^export ", "", (FOLDER / "drawing.js").read_text(encoding="utf-8"), flags=re.MULTILINE)


def own(name: str) -> str:
    """A figure's own code, which needs that of :func:`drawing` before it."""
    code = (FOLDER / f"{name}.js").read_text(encoding="utf-8")
    return re.sub(r'^import \{[^}]*\} from "\./drawing\.js";\n', "", code, flags=re.MULTILINE)


def module(name: str) -> str:
    """A figure's ES module with the shared drawing inside it, so that it needs no other file."""
    return drawing() + own(name)


def share(pages: Sequence[str]) -> list[str]:
    """The figures of one page of the book, each from :meth:`LiveFigure.page`: what all of them need stands there once.

    Style and drawing stay in the first figure, the loader in the last, which starts all of them.
    """
    shared = []
    for place, page in enumerate(pages):
        if place > 0:
            page = re.sub(r"<style>.*?</style>\n|<script [^>]*live-drawing.*?</script>\n", "", page, flags=re.DOTALL)
        if place < len(pages) - 1:
            page = re.sub(r"<script>.*?</script>\n", "", page, flags=re.DOTALL)
        shared.append(page)
    return shared


_PAGE = """<figure class="live" data-figure="{name}" data-state="{state}">
<style>{css}</style>
<div class="live-still">{still}</div>
{caption}
<script type="text/plain" class="live-drawing">{drawing}</script>
<script type="text/plain" class="live-module">{module}</script>
<script>{loader}</script>
</figure>"""
