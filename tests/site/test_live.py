"""Figures that answer the hand: the formula of the page is the library's, and every hand can move them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from scipy.spatial.distance import jensenshannon
from scipy.special import ndtr
from torch.nn import functional as F

from deeptransfer.adversarial import gradient_reversal
from deeptransfer.discrepancy import GaussianKernels, JointMMD, mmd2, witness
from deeptransfer.live import FOLDER, LiveFigure, module, names, share
from deeptransfer.normalization.autodial import AutoDIAL1d
from deeptransfer.normalization.moments import Moments
from deeptransfer.normalization.reciprocal import compensate
from deeptransfer.style import adaptive_instance_norm, whiten_color

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# Words of the state that each figure is driven to, and the knob that drives it.
KNOBS = {
    "adabn": "Centre of the target",
    "attention": "Mean of channel 2 in the source",
    "autodial": "Place of the target",
    "joint": "Mean prediction of the target's left cluster",
    "kernels": "Weight of the kernel with σ² = 0.1",
    "palette": "End of the style's long axis",
    "saddle": "Shift of the target",
    "swapped": "Class A of the target, full",
    "witness": "Point 3 of the target",
}
rng = np.random.default_rng(0)


def shown(browser: Browser, folder: Any, name: str, *, theme: str = "light", width: int = 820, **options: Any) -> Page:
    """A page that holds one figure and nothing else, from the disk."""
    path = folder / f"{name}-{theme}.html"
    ground = "#fff" if theme == "light" else "#14181e"
    style = f"margin: 16px; max-width: 790px; background: {ground}; color: {'#222' if theme == 'light' else '#eee'}"
    path.write_text(
        f'<!doctype html><html lang="en" data-theme="{theme}"><meta charset="utf-8"><title>{name}</title>'
        f'<meta name="viewport" content="width=device-width"><body style="{style}; font: 16px sans-serif"><main>'
        f"<h1>{name}</h1>"
        f"{LiveFigure(name, 'What to look at.').page()}</main></body></html>",
        encoding="utf-8",
    )
    page = browser.new_page(viewport={"width": width, "height": 900}, **options)
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(path.as_uri())
    if options.get("java_script_enabled", True):
        page.locator(".live-handle").first.wait_for()
        page.wait_for_function("document.querySelector('.live-said')?.textContent")
    assert not problems
    return page


@pytest.fixture(scope="module")
def formula(browser: Browser) -> Iterator[Any]:
    """Evaluate a function of a figure's module in the browser."""
    page = browser.new_page()

    def call(figure: str, function: str, *arguments: Any) -> Any:
        source = module(figure)
        return page.evaluate(
            """async ([source, name, values]) => {
                const address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
                return (await import(address)).formulas[name](...values);
            }""",
            [source, function, arguments],
        )

    yield call
    page.close()


def test_every_figure_is_driven_here_and_light():
    assert sorted(KNOBS) == names()
    for name in names():
        assert len(module(name).encode()) <= 25_000
        assert "</script" not in module(name)
        assert "eval(" not in module(name)
        assert len(LiveFigure(name).page().encode()) <= 60_000


@pytest.mark.parametrize("trial", range(3))
def test_witness_and_mmd_are_the_librarys(formula, trial):
    x, y = rng.normal(size=6), rng.normal(1, 2, size=5)
    sigma = float(rng.uniform(0.1, 3))
    columns = [torch.tensor(v)[:, None] for v in (x, y)]
    expected = mmd2(*columns, sigma2=sigma**2).item()
    assert formula("witness", "mmd2", x.tolist(), y.tolist(), sigma) == pytest.approx(expected, abs=1e-12)
    at = float(rng.normal())
    expected = witness(torch.tensor([[at]], dtype=torch.float64), *columns, sigma2=sigma**2).item()
    assert formula("witness", "witness", at, x.tolist(), y.tolist(), sigma) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("trial", range(3))
def test_the_joint_discrepancy_is_the_librarys(formula, trial):
    layers = [[rng.normal(size=(n, 1)), rng.dirichlet([1, 1], n)] for n in (7, 6)]
    sigma2 = [1.0, 1.69 / 2]
    joint = JointMMD([GaussianKernels(sigma2=s) for s in sigma2])
    expected = joint(*[[torch.tensor(part) for part in domain] for domain in layers]).item()
    given = [[part.tolist() for part in domain] for domain in layers]
    assert formula("joint", "jmmd2", *given, sigma2) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("trial", range(3))
def test_normalising_by_own_statistics_is_batch_norm(formula, trial):
    points = rng.normal(3, 2, size=(9, 2))
    statistics = formula("adabn", "moments", points.tolist())
    out = formula("adabn", "normalise", points.tolist(), statistics)
    expected = F.batch_norm(torch.tensor(points), None, None, training=True, eps=1e-5)
    np.testing.assert_allclose(out, expected, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_the_two_transfers_are_the_librarys(formula, alpha):
    content, style = (rng.normal(size=(n, 2)) @ rng.normal(size=(2, 2)) + rng.normal(size=2) for n in (9, 7))
    images = [torch.tensor(points.T)[None] for points in (content, style)]
    for name, transfer in (("adain", adaptive_instance_norm), ("wct", whiten_color)):
        found = formula("palette", name, content.tolist(), style.tolist(), alpha)
        np.testing.assert_allclose(np.transpose(found), transfer(*images, alpha)[0], atol=1e-9)


@pytest.mark.parametrize("alpha", [0.5, 0.63, 0.9, 1.0])
def test_the_mixture_is_autodials(formula, alpha):
    own, other = ({"mean": float(rng.normal()), "variance": float(rng.uniform(0.2, 4))} for _ in range(2))
    layer = AutoDIAL1d(1).double()
    with torch.no_grad():
        layer.alpha.fill_(alpha)
    as_moments = [
        Moments(*(torch.tensor([m[k]], dtype=torch.float64) for k in ("mean", "variance")), 8) for m in (own, other)
    ]
    for given, expected in zip(((own, other), (other, own)), layer.mix(*as_moments), strict=True):
        found = formula("autodial", "mixture", *given, alpha)
        assert found["mean"] == pytest.approx(expected.mean.item(), abs=1e-9)
        assert found["variance"] == pytest.approx(expected.var.item(), abs=1e-9)


@pytest.mark.parametrize("temperature", [0.01, 0.3, 1.0, 100.0])
def test_the_attention_is_reciprocal_normalizations(formula, temperature):
    own, other = rng.normal(size=(2, 4))
    expected = compensate(*(torch.tensor(v)[None, :, None] for v in (own, other)), temperature).flatten()
    found = formula("attention", "compensated", own.tolist(), other.tolist(), temperature)
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("lambda_", [0.0, 1.0, 2.5])
def test_a_step_is_the_gradient_through_the_reversal(formula, lambda_):
    source, target = (torch.tensor(rng.normal(size=(n, 2))) for n in (6, 5))
    w, b, shift = (torch.tensor(v, requires_grad=True) for v in (rng.normal(size=2), rng.normal(), rng.normal(size=2)))
    logits = [gradient_reversal(f, lambda_) @ w + b for f in (source, target + shift)]
    losses = [F.softplus(-logits[0]).mean(), F.softplus(logits[1]).mean()]
    loss = sum(losses) / 2
    loss.backward()
    state = {"w": w.tolist(), "b": b.item(), "shift": shift.tolist()}
    found = formula("saddle", "domainLoss", source.tolist(), target.tolist(), state["shift"], state["w"], state["b"])
    assert found["loss"] == pytest.approx(loss.item(), abs=1e-12)
    after = formula("saddle", "step", state, 0.3, lambda_, source.tolist(), target.tolist())
    for name, value in (("w", w), ("b", b), ("shift", shift)):
        np.testing.assert_allclose(after[name], (value - 0.3 * value.grad).detach(), atol=1e-12)


@pytest.mark.parametrize("trial", range(3))
def test_the_best_discriminators_loss_is_log_2_minus_the_divergence(formula, trial):
    p, q = rng.dirichlet(np.ones(30), 2)
    expected = math.log(2) - jensenshannon(p, q) ** 2
    assert formula("swapped", "bayesLoss", p.tolist(), q.tolist()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("kind", "size"), [("shift", 0.7), ("spread", 0.4), ("comb", 0.9)])
def test_weights_and_power_of_the_linear_time_test(formula, kind, size):
    both = formula("kernels", "masses", kind, size)
    p, q = np.array(both["source"]), np.array(both["target"])
    found = formula("kernels", "termMoments", p.tolist(), q.tolist())
    coarse = formula("kernels", "termMoments", p.tolist(), q.tolist(), [0.1, 10])
    grid = -6 + 0.05 * np.arange(241)
    k = [np.exp(-((grid[:, None] - grid) ** 2) / (2 * s)) for s in (0.1, 10)]
    d = [p @ K @ p + q @ K @ q - 2 * p @ K @ q for K in k]
    np.testing.assert_allclose(coarse["d"], d, atol=1e-10)
    draws = np.random.default_rng(1)
    x, x2, y, y2 = (draws.choice(grid, 200_000, p=mass / mass.sum()) for mass in (p, p, q, q))
    g = lambda a, b, s: np.exp(-((a - b) ** 2) / (2 * s))  # noqa: E731
    h = np.stack([g(x, x2, s) + g(y, y2, s) - g(x, y2, s) - g(x2, y, s) for s in (0.1, 10)])
    np.testing.assert_allclose(coarse["Q"], np.cov(h), rtol=0.03, atol=1e-5)
    # The weights against an independent solver, and the power against scipy's.
    d, Q = np.array(found["d"]), np.array(found["Q"])
    L = np.linalg.cholesky(Q + 1e-4 * np.eye(5))
    scale = d.max()
    beta, _ = nnls(L.T, np.linalg.solve(L, d / scale))
    np.testing.assert_allclose(formula("kernels", "best", d.tolist(), Q.tolist()), beta / beta.sum(), atol=1e-6)
    for n in (100, 1000, 30_000):
        expected = ndtr(math.sqrt(n / 2) * (beta @ d) / math.sqrt(beta @ Q @ beta) - 1.6448536269514722)
        given = (beta / beta.sum()).tolist()
        assert formula("kernels", "power", given, d.tolist(), Q.tolist(), n) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", sorted(KNOBS))
def test_mouse_touch_and_keys_move_a_figure_and_it_says_so(browser, tmp_path, name):
    context = {"has_touch": True}
    page = shown(browser, tmp_path, name, **context)
    handle = page.locator(f'.live-handle[aria-label="{KNOBS[name]}"]')
    said = [page.locator(".live-said").text_content()]

    def settled() -> str:
        page.wait_for_function("(old) => document.querySelector('.live-said').textContent !== old", arg=said[-1])
        said.append(page.locator(".live-said").text_content())
        return str(handle.get_attribute("aria-valuetext"))

    box = handle.locator(".live-knob").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 40, y - 30, steps=4)
    page.mouse.up()
    by_mouse = settled()
    handle.focus()
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("Shift+ArrowDown")
    by_keys = settled()
    assert by_keys != by_mouse
    box = handle.locator(".live-knob").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    finger = page.context.new_cdp_session(page)
    finger.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    finger.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x + 30, "y": y - 24}]})
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert settled() != by_keys
    page.close()


@pytest.mark.parametrize("name", sorted(KNOBS))
def test_a_figure_fits_a_phone_and_passes_axe_in_both_themes(browser, tmp_path, name):
    from axe_playwright_python.sync_playwright import Axe

    for theme in ("light", "dark"):
        page = shown(browser, tmp_path, name, theme=theme, width=390)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        for text in page.locator("figure.live svg text").all():
            box = text.bounding_box()
            assert box["x"] >= 0, text.text_content()
            assert box["x"] + box["width"] <= 391, text.text_content()
        violations = Axe().run(page).response["violations"]
        assert not violations, [(v["id"], [n["html"][:120] for n in v["nodes"]]) for v in violations]
        page.close()


def test_figures_that_share_a_page_share_what_all_need(browser, tmp_path):
    pages = [LiveFigure(name).page() for name in ("witness", "adabn", "joint")]
    path = tmp_path / "three.html"
    path.write_text(f'<!doctype html><meta charset="utf-8">{"".join(share(pages))}', encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    for name in ("witness", "adabn", "joint"):
        figure = page.locator(f"[data-figure={name}]")
        figure.locator(f'.live-handle[aria-label="{KNOBS[name]}"]').wait_for()
        assert figure.locator(".live-stage > svg").count() == 1
    assert page.locator("style").count() == page.locator(".live-drawing").count() == 1
    page.close()


@pytest.mark.parametrize("name", sorted(KNOBS))
def test_without_javascript_a_still_picture_stands_there(browser, tmp_path, name):
    page = shown(browser, tmp_path, name, java_script_enabled=False)
    box = page.locator("figure.live svg").bounding_box()
    assert box["width"] > 500
    assert box["height"] > 200
    page.close()


@pytest.mark.parametrize("name", sorted(KNOBS))
def test_the_still_picture_is_the_figures_start(browser, name):
    from stills import still

    stored = (FOLDER / "stills" / f"{name}.svg").read_text(encoding="utf-8")
    assert still(browser, name) == stored, "the module has changed: draw it anew with scripts/stills.py"


def test_in_a_notebook_the_state_goes_both_ways():
    figure = LiveFigure("witness", sigma=2.0)
    widget = figure.widget()
    assert widget.state == {"sigma": 2.0}
    figure.state = {"sigma": 0.5}
    assert widget.state == {"sigma": 0.5}
    widget.state = {"sigma": 3.0}
    assert figure.state == {"sigma": 3.0}
    assert figure.widget() is widget


def test_an_unknown_figure_lists_the_known_ones():
    with pytest.raises(ValueError, match="there are adabn, attention"):
        LiveFigure("moons")


def test_reading_a_page_needs_no_torch():
    import subprocess
    import sys

    code = "import sys; sys.modules['torch'] = None\n"
    code += "from deeptransfer.live import *\nprint(len(LiveFigure('adabn').page()))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert int(run.stdout) > 10_000
