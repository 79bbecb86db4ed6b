// AdaIN against WCT: a cloud of colours takes the statistics of another one, which the hand turns and stretches.
import { axes, clamp, digits, knob, line, linear, normal, panels, point, shape, slider, stage } from "./drawing.js";

const COUNT = 60;
const SPAN = [-4, 4];
const THIN = 0.45; // the style's spread across its long axis

const pairs = [[0, 0], [0, 1], [1, 1]];

/** Mean, and biased covariance as [xx, xy, yy], of points in the plane. */
export function moments(points) {
  const mean = [0, 1].map((k) => points.reduce((sum, p) => sum + p[k], 0) / points.length);
  const cov = pairs.map(([i, j]) => points.reduce((sum, p) => sum + (p[i] - mean[i]) * (p[j] - mean[j]), 0) / points.length);
  return { mean, cov };
}

/** The symmetric root of a positive definite [xx, xy, yy]: (A + √det · I) / √(trace + 2 √det). */
function root([a, b, c]) {
  const s = Math.sqrt(Math.max(a * c - b * b, 0));
  const t = Math.sqrt(a + c + 2 * s);
  return [(a + s) / t, b / t, (c + s) / t];
}

const inverse = ([a, b, c]) => [c, -b, a].map((v) => v / (a * c - b * b));
const times = ([a, b, c], [u, v]) => [a * u + b * v, b * u + c * v];
const ridge = ([a, b, c], eps) => [a + eps, b, c + eps];

function transfer(content, style, alpha, map) {
  const { mean } = moments(content);
  const { mean: goal } = moments(style);
  return content.map((p) => {
    const t = map([p[0] - mean[0], p[1] - mean[1]]);
    return [0, 1].map((k) => alpha * (t[k] + goal[k]) + (1 - alpha) * p[k]);
  });
}

/** The style's mean and variance in each coordinate. */
export function adain(content, style, alpha = 1, eps = 1e-5) {
  const [own, other] = [content, style].map((points) => ridge(moments(points).cov, eps));
  return transfer(content, style, alpha, ([u, v]) => [u * Math.sqrt(other[0] / own[0]), v * Math.sqrt(other[2] / own[2])]);
}

/** The style's mean and covariance. */
export function wct(content, style, alpha = 1, eps = 1e-5) {
  const white = inverse(root(ridge(moments(content).cov, eps)));
  const color = root(ridge(moments(style).cov, eps));
  return transfer(content, style, alpha, (p) => times(color, times(white, p)));
}

const draws = (seed) => normal(seed, 2 * COUNT);
const CONTENT = ((z) => Array.from({ length: COUNT }, (_, i) => [-0.9 + z[2 * i], -0.9 + 0.9 * z[2 * i] + 0.35 * z[2 * i + 1]]))(draws(5));
const UNIT = ((z) => Array.from({ length: COUNT }, (_, i) => [z[2 * i], z[2 * i + 1]]))(draws(6));

/** The style's cloud: `long` along its axis, THIN across it, around its middle. */
function cloud({ long, angle }) {
  const [c, s] = [Math.cos(angle), Math.sin(angle)];
  return UNIT.map(([u, v]) => [1.2 + long * u * c - THIN * v * s, 0.8 + long * u * s + THIN * v * c]);
}

const correlation = (points) => ((m) => m[1] / Math.sqrt(m[0] * m[2]))(moments(points).cov);

/** Where one standard deviation lies, all around. */
function ellipse(points) {
  const { mean, cov } = moments(points);
  const half = root(cov);
  return Array.from({ length: 49 }, (_, i) => {
    const [u, v] = times(half, [Math.cos((i * Math.PI) / 24), Math.sin((i * Math.PI) / 24)]);
    return [mean[0] + 2 * u, mean[1] + 2 * v];
  });
}

export const formulas = { moments, adain, wct };
export const start = { long: 1.3, angle: -0.8, alpha: 1 };
const TITLE = "Turn the style's cloud: what AdaIN and WCT make of the content";

export default {
  render({ model, el }) {
    let map;
    const frame = stage({
      model, el, start, title: TITLE,
      draw({ width, state }) {
        const { boxes, height } = panels(width, 3, { left: 26, bottom: 26, ratio: 1 });
        const style = cloud(state);
        const results = [adain(CONTENT, style, state.alpha), wct(CONTENT, style, state.alpha)];
        const shown = [["content and style", CONTENT, "source"], ["after AdaIN", results[0], "model"], ["after WCT", results[1], "model"]];
        const parts = shown.map(([title, points, kind], i) => {
          const [x, y] = [linear(SPAN, boxes[i].x), linear(SPAN, boxes[i].y)];
          if (i === 0) map = { x, y };
          const inside = points.filter((p) => p.every((v) => v > SPAN[0] && v < SPAN[1]));
          const around = style.filter((p) => i === 0 && p.every((v) => v > SPAN[0] && v < SPAN[1]));
          return [
            axes(x, y, { title, xticks: [-2, 0, 2], yticks: [-2, 0, 2] }),
            around.map(([u, v]) => point(x(u), y(v), "target", false, 2.5)),
            inside.map(([u, v]) => shape("circle", { cx: x(u), cy: y(v), r: 2.75, class: `live-point ${kind}` })),
            line(x, y, ellipse(style).map((p) => p.map((v) => clamp(v, SPAN))), { class: "live-line target" }),
            i ? shape("text", { x: x.range[0] + 6, y: y.range[0] - 8, class: "live-key" },
              `correlation ${digits(correlation(points), 2)}`) : [],
          ];
        });
        const words = `The style's correlation is ${digits(correlation(style), 2)}, the content's ${digits(correlation(CONTENT), 2)}. ` +
          `After AdaIN it is ${digits(correlation(results[0]), 2)}, after WCT ${digits(correlation(results[1]), 2)}.`;
        return { height, parts, words };
      },
    });
    slider(frame, { name: "alpha", label: "Strength α", min: 0, max: 1, step: 0.05, text: (v) => digits(v, 2) });
    knob(frame, {
      label: "End of the style's long axis", kind: "target",
      place: ({ long, angle }) => [map.x(1.2 + 2 * long * Math.cos(angle)), map.y(0.8 + 2 * long * Math.sin(angle))],
      moved: (px, py) => {
        const [u, v] = [map.x.back(px) - 1.2, map.y.back(py) - 0.8];
        frame.change({ long: clamp(Math.hypot(u, v) / 2, [0.5, 1.35]), angle: Math.atan2(v, u) });
      },
      text: ({ long, angle }) => `${digits((angle * 180) / Math.PI, 0)} degrees, spread ${digits(long, 2)}`,
    });
    return frame.stop;
  },
};
