// AdaBN: the same classifier behind the source's statistics and behind the target's own, while the target is dragged.
import { axes, clamp, crossing, digits, knob, line, linear, normal, panels, point, shape, slider, stage } from "./drawing.js";

const EPS = 1e-5;
const COUNT = 80;
const CENTRES = [[-1.3, -0.7], [1.3, 0.7]];
const SPAN = [-6, 6];

/** Mean and variance (of all points, so biased) of each coordinate. */
export function moments(points) {
  const mean = [0, 1].map((k) => points.reduce((sum, p) => sum + p[k], 0) / points.length);
  const variance = [0, 1].map((k) => points.reduce((sum, p) => sum + (p[k] - mean[k]) ** 2, 0) / points.length);
  return { mean, variance };
}

/** BatchNorm with given statistics, without scale and shift. */
export function normalise(points, { mean, variance }, eps = EPS) {
  return points.map((p) => [0, 1].map((k) => (p[k] - mean[k]) / Math.sqrt(variance[k] + eps)));
}

/** Two classes of points around their centres, `share` of them of the first class. */
function cloud(seed, share) {
  const z = normal(seed, 2 * COUNT);
  const first = Math.round(share * COUNT);
  const labels = Array.from({ length: COUNT }, (_, i) => (i < first ? 0 : 1));
  return { labels, points: labels.map((k, i) => [CENTRES[k][0] + 0.75 * z[2 * i], CENTRES[k][1] + 0.75 * z[2 * i + 1]]) };
}

const SOURCE = cloud(1, 0.5);
const SOURCE_MOMENTS = moments(SOURCE.points);
const INSIDE = normalise(SOURCE.points, SOURCE_MOMENTS);
/** The classifier, fixed after training on the source: w · x̂ > 0 is the second class. */
const CLASS_MEANS = [0, 1].map((k) => moments(INSIDE.filter((_, i) => SOURCE.labels[i] === k)).mean);
const W = [0, 1].map((k) => CLASS_MEANS[1][k] - CLASS_MEANS[0][k]);

function target({ x, y, spread, share }) {
  const { labels, points } = cloud(2, share);
  return { labels, points: points.map(([u, v]) => [x + spread * u, y + spread * v]) };
}

const accuracy = (points, labels) =>
  points.filter(([u, v], i) => (W[0] * u + W[1] * v > 0 ? 1 : 0) === labels[i]).length / points.length;

/** The decision line w · x̂ = 0 in the coordinates before normalisation. */
function boundary({ mean, variance }) {
  const [a, b] = [0, 1].map((k) => W[k] / Math.sqrt(variance[k] + EPS));
  return [a, b, -a * mean[0] - b * mean[1]];
}

export const formulas = { moments, normalise };
export const start = { x: 2.6, y: 1.9, spread: 0.8, share: 0.5 };
const TITLE = "Drag the target: the source's statistics and its own";

export default {
  render({ model, el }) {
    let map;
    const frame = stage({
      model, el, start, title: TITLE,
      draw({ width, state }) {
        const { boxes, height } = panels(width, 2);
        const before = { x: linear(SPAN, boxes[0].x), y: linear([-5, 5], boxes[0].y) };
        const inner = { x: linear([-3, 3], boxes[1].x), y: linear([-3, 3], boxes[1].y) };
        map = before;
        const { points, labels } = target(state);
        const own = moments(points);
        const [fixed, adapted] = [SOURCE_MOMENTS, own].map((s) => Math.round(100 * accuracy(normalise(points, s), labels)));
        const cut = (law, box) => crossing(law, box.x.domain, box.y.domain);
        const dots = (list, classes, domain, box) =>
          list.map(([u, v], i) => [u, v, classes[i]])
            .filter(([u, v]) => u > box.x.domain[0] && u < box.x.domain[1] && v > box.y.domain[0] && v < box.y.domain[1])
            .map(([u, v, k]) => point(box.x(u), box.y(v), domain, k === 1));
        const parts = [
          axes(before.x, before.y, { title: "before the layer", xticks: [-4, 0, 4], yticks: [-4, 0, 4] }),
          dots(SOURCE.points, SOURCE.labels, "source", before),
          dots(points, labels, "target", before),
          line(before.x, before.y, cut(boundary(SOURCE_MOMENTS), before), { class: "live-line neutral dashed" }),
          line(before.x, before.y, cut(boundary(own), before), { class: "live-line model" }),
          axes(inner.x, inner.y, { title: "after it, own statistics", xticks: [-2, 0, 2], yticks: [-2, 0, 2] }),
          dots(normalise(points, own), labels, "target", inner),
          line(inner.x, inner.y, cut([W[0], W[1], 0], inner), { class: "live-line model" }),
          shape("text", { x: before.x.range[0], y: before.y.range[0] + 34, class: "live-key neutral" },
            `with the source's statistics ${fixed} % right`),
          shape("text", { x: inner.x.range[0], y: inner.y.range[0] + 34, class: "live-key model" },
            `with its own ${adapted} % right`),
        ];
        const words = `Target centred at ${digits(state.x)}, ${digits(state.y)}, spread ${digits(state.spread)}, ` +
          `${Math.round(100 * state.share)} % of the first class: ${fixed} % right with the source's statistics, ` +
          `${adapted} % with its own.`;
        return { height, parts, words };
      },
    });
    slider(frame, {
      name: "share", label: "First class in the target", min: 0.05, max: 0.95, step: 0.05,
      text: (value) => `${Math.round(100 * value)} %`,
    });
    slider(frame, { name: "spread", label: "Spread of the target", min: 0.3, max: 2, step: 0.05, text: (v) => digits(v, 2) });
    knob(frame, {
      label: "Centre of the target", kind: "target",
      place: (state) => [map.x(state.x), map.y(state.y)],
      moved: (x, y) => frame.change({ x: clamp(map.x.back(x), SPAN), y: clamp(map.y.back(y), [-5, 5]) }),
      text: (state) => `${digits(state.x)}, ${digits(state.y)}`,
    });
    return frame.stop;
  },
};
