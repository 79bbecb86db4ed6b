// AutoDIAL: two classes in each domain, normalised by mixtures of the two domains' distributions.
import { axes, clamp, digits, knob, linear, normal, panels, shape, slider, stage } from "./drawing.js";

const EPS = 1e-5;
const COUNT = 400;
const SPAN = [-4, 8];
const AFTER = [-3.5, 3.5];
const FEET = { source: 2.2, target: 0.2 }; // the feet of the two histograms in a panel

/** Moments of the mixture that normalises the rows of `own`: α of its own distribution, 1 − α of the other's. */
export function mixture(own, other, alpha) {
  const mean = alpha * own.mean + (1 - alpha) * other.mean;
  const variance = alpha * (own.variance + (own.mean - mean) ** 2) + (1 - alpha) * (other.variance + (other.mean - mean) ** 2);
  return { mean, variance };
}

export function moments(values) {
  const mean = values.reduce((sum, v) => sum + v, 0) / values.length;
  return { mean, variance: values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / values.length };
}

const normalise = (values, { mean, variance }) => values.map((v) => (v - mean) / Math.sqrt(variance + EPS));

/** A domain: rows of class A around −1.4, of class B around 1.4, moved and stretched. */
function rows(seed, shareB, shift, spread) {
  const z = normal(seed, COUNT);
  const first = Math.round((1 - shareB) * COUNT);
  const labels = z.map((_, i) => (i < first ? 0 : 1));
  return { labels, values: z.map((v, i) => shift + spread * ((labels[i] ? 1.4 : -1.4) + 0.6 * v)) };
}

export const formulas = { mixture, moments };
export const start = { alpha: 1, shareB: 0.8, shift: 3 };
const TITLE = "Own share α from 1 to ½: both domains after the layer";

export default {
  render({ model, el }) {
    let map;
    const frame = stage({
      model, el, start, title: TITLE,
      draw({ width, state: { alpha, shareB, shift } }) {
        const domains = { source: rows(1, 0.5, 0, 1), target: rows(2, shareB, shift, 1.2) };
        const own = { source: moments(domains.source.values), target: moments(domains.target.values) };
        const after = {
          source: normalise(domains.source.values, mixture(own.source, own.target, alpha)),
          target: normalise(domains.target.values, mixture(own.target, own.source, alpha)),
        };
        // The source's classifier behind the layer: the border half-way between its two classes.
        const of = (k) => moments(after.source.filter((_, i) => domains.source.labels[i] === k)).mean;
        const border = (of(0) + of(1)) / 2;
        const right = Math.round((100 * after.target.filter((v, i) => v > border === (domains.target.labels[i] === 1)).length) / COUNT);
        const { boxes, height } = panels(width, 2, { ratio: 0.75 });
        const inputs = { x: linear(SPAN, boxes[0].x), y: linear([0, 4.2], boxes[0].y) };
        const outputs = { x: linear(AFTER, boxes[1].x), y: linear([0, 4.2], boxes[1].y) };
        map = inputs;
        const bars = (values, labels, name, { x, y }, [low, high], bins = 48) => {
          const size = (high - low) / bins;
          const counts = [0, 1].map(() => new Array(bins).fill(0));
          values.forEach((v, i) => {
            const bin = Math.floor((v - low) / size);
            if (bin >= 0 && bin < bins) counts[labels[i]][bin] += 1;
          });
          const unit = 1.8 / 45; // 45 rows in a bin fill a domain's half of the panel
          return counts.map((list, k) =>
            list.map((n, bin) => n && shape("rect", {
              x: x(low + bin * size), width: x(low + (bin + 1) * size) - x(low + bin * size) - 0.5,
              y: y(FEET[name] + Math.min(n * unit, 2)), height: y(FEET[name]) - y(FEET[name] + Math.min(n * unit, 2)),
              class: `live-bar ${name}${k ? " pale" : ""}`,
            })).filter(Boolean));
        };
        const parts = [
          axes(inputs.x, inputs.y, { title: "before the layer", xticks: [-3, 0, 3, 6] }),
          axes(outputs.x, outputs.y, { title: "after it", xticks: [-2, 0, 2] }),
          ["source", "target"].map((name) => [
            bars(domains[name].values, domains[name].labels, name, inputs, SPAN),
            bars(after[name], domains[name].labels, name, outputs, AFTER),
            shape("text", { x: inputs.x.range[0] + 6, y: inputs.y(FEET[name] + 1.65), class: `live-key ${name}` }, name),
          ]),
          shape("line", {
            x1: outputs.x(border), x2: outputs.x(border), y1: outputs.y(0), y2: outputs.y(4.2), class: "live-line ink dashed",
          }),
          shape("text", { x: inputs.x.range[0], y: inputs.y.range[0] + 34 }, "full: class A, pale: class B"),
          shape("text", { x: outputs.x.range[0], y: outputs.y.range[0] + 34, class: "live-key model" },
            `target on its side: ${right} %`),
        ];
        const words = `Own share α ${digits(alpha, 2)}, ${Math.round(100 * shareB)} % of the target are class B, target moved ` +
          `by ${digits(shift)}: ${right} % of it lies on its side of the source's border.`;
        return { height, parts, words };
      },
    });
    slider(frame, { name: "alpha", label: "Own share α", min: 0.5, max: 1, step: 0.01, text: (value) => digits(value, 2) });
    slider(frame, {
      name: "shareB", label: "Class B in the target", min: 0.1, max: 0.9, step: 0.05,
      text: (value) => `${Math.round(100 * value)} %`,
    });
    knob(frame, {
      label: "Place of the target", kind: "target",
      place: (state) => [map.x(state.shift), map.y(FEET.target)],
      moved: (x) => frame.change({ shift: clamp(map.x.back(x), [-2, 6]) }),
      text: (state) => digits(state.shift),
    });
    return frame.stop;
  },
};
