// JAN: features and predictions with equal marginals in both domains, and pairs that differ.
import { axes, clamp, digits, knob, linear, normal, panels, point, shape, slider, stage } from "./drawing.js";

const COUNT = 40; // rows in each of the two clusters
const SIGMA2 = { feature: 1, prediction: 1.69 / 2 }; // JAN's bandwidth for the softmax
const WOBBLE = normal(3, 2 * COUNT);
const FEATURE = normal(4, 2 * COUNT).map((z, i) => (i < COUNT ? -1.3 : 1.3) + 0.35 * z);

const gauss = (d2, sigma2) => Math.exp(-d2 / (2 * sigma2));
const squared = (x, y) => x.reduce((sum, v, k) => sum + (v - y[k]) ** 2, 0);

/** The mean over all pairs of the product over layers of each layer's kernel. */
function meanProduct(xs, ys, sigma2) {
  let sum = 0;
  const [n, m] = [xs[0].length, ys[0].length];
  for (let i = 0; i < n; i++)
    for (let j = 0; j < m; j++) {
      let product = 1;
      for (let l = 0; l < xs.length; l++) product *= gauss(squared(xs[l][i], ys[l][j]), sigma2[l]);
      sum += product;
    }
  return sum / (n * m);
}

/** The biased JMMD² of two samples, each a list of layers of rows; MMD² if there is one layer. */
export function jmmd2(xs, ys, sigma2) {
  return meanProduct(xs, xs, sigma2) + meanProduct(ys, ys, sigma2) - 2 * meanProduct(xs, ys, sigma2);
}

/** Predictions of all rows: `confidence` on average for the cluster's own class. */
function predictions(confidence) {
  return WOBBLE.map((z, i) => {
    const logit = Math.log(confidence / (1 - confidence)) * (i < COUNT ? -1 : 1) * (1 + 0.2 * z);
    const p = 1 / (1 + Math.exp(-logit));
    return [1 - p, p];
  });
}

/** The same predictions, in which `share` of the rows of either cluster trade places with one of the other. */
function traded(rows, share) {
  const out = [...rows];
  for (let i = 0; i < Math.round(share * COUNT); i++) [out[i], out[COUNT + i]] = [rows[COUNT + i], rows[i]];
  return out;
}

export const formulas = { jmmd2 };
export const start = { share: 0.75, confidence: 0.9 };
const TITLE = "Equal features, equal predictions, other pairs";

export default {
  render({ model, el }) {
    let map;
    const frame = stage({
      model, el, start, title: TITLE,
      draw({ width, state: { share, confidence } }) {
        const source = predictions(confidence);
        const target = traded(source, share);
        const features = FEATURE.map((f) => [f]);
        const values = [
          ["features", jmmd2([features], [features], [SIGMA2.feature])],
          ["predictions", jmmd2([source], [target], [SIGMA2.prediction])],
          ["pairs", jmmd2([features, source], [features, target], [SIGMA2.feature, SIGMA2.prediction])],
        ];
        const { boxes, height } = panels(width, 2, { ratio: 0.8 });
        const [x, y] = [linear([-2.6, 2.6], boxes[0].x), linear([-0.05, 1.05], boxes[0].y)];
        map = { x, y };
        const place = linear([-0.5, 2.5], boxes[1].x);
        const size = linear([0, 0.4], boxes[1].y);
        const base = size(0);
        const bar = ([name, value], i) => [
          shape("rect", {
            x: place(i - 0.3), width: place(0.3) - place(-0.3), y: size(Math.max(value, 0)), height: base - size(Math.max(value, 0)),
            class: `live-bar ${i < 2 ? "neutral-fill" : "accent-fill"}`,
          }),
          shape("text", { x: place(i), y: size(Math.max(value, 0)) - 6, "text-anchor": "middle" }, digits(Math.max(value, 0), 2)),
          shape("text", { x: place(i), y: base + 17, "text-anchor": "middle" }, name),
        ];
        const parts = [
          axes(x, y, { title: "source and target", xlabel: "feature f", xticks: [-2, 0, 2], yticks: [0, 0.5, 1] }),
          source.map((g, i) => point(x(FEATURE[i]), y(g[1]), "source", true, 5)),
          target.map((g, i) => point(x(FEATURE[i]), y(g[1]), "target", false, 3)),
          axes(place, size, { title: "MMD², of pairs JMMD²" }),
          values.map(bar),
        ];
        const words = `${Math.round(100 * share)} % of the target's pairs are wrong, confidence ${digits(confidence, 2)}: MMD² is ` +
          `${digits(values[0][1], 2)} for the features, ${digits(Math.max(values[1][1], 0), 2)} for the predictions and ` +
          `${digits(Math.max(values[2][1], 0), 2)} for the pairs.`;
        return { height, parts, words };
      },
    });
    slider(frame, {
      name: "confidence", label: "Confidence of the predictions", min: 0.5, max: 0.99, step: 0.01, text: (v) => digits(v, 2),
    });
    // The knob is the mean prediction of the target's left cluster: it rises as pairs are traded.
    const level = ({ share, confidence }) => 1 - confidence + share * (2 * confidence - 1);
    knob(frame, {
      label: "Mean prediction of the target's left cluster", kind: "target",
      place: (state) => [map.x(-2.2), map.y(level(state))],
      moved: (_, py) => {
        const { confidence } = frame.state();
        const span = 2 * confidence - 1;
        if (span > 0) frame.change({ share: clamp((map.y.back(py) - 1 + confidence) / span, [0, 1]) });
      },
      text: (state) => `${Math.round(100 * state.share)} % of the pairs are wrong`,
    });
    return frame.stop;
  },
};
