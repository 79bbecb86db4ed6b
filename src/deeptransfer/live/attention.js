// Reciprocal Normalization over four channels: what each mean of the source receives from the target's.
import { axes, clamp, digits, knob, linear, point, shape, slider, stage } from "./drawing.js";

const SPAN = [-0.4, 3.4];

/** The attention A: row i is a softmax over j of −(m_i − m'_j)² / T. */
export function attention(own, other, temperature) {
  return own.map((m) => {
    const scores = other.map((o) => -((m - o) ** 2) / temperature);
    const top = Math.max(...scores);
    const weights = scores.map((score) => Math.exp(score - top));
    const sum = weights.reduce((total, w) => total + w, 0);
    return weights.map((w) => w / sum);
  });
}

/** What each channel receives, Σ_j A_ij m'_j, mixed with its own by the gate g. */
export function compensated(own, other, temperature, gate = 0) {
  return attention(own, other, temperature).map(
    (row, i) => gate * own[i] + (1 - gate) * row.reduce((sum, a, j) => sum + a * other[j], 0),
  );
}

export const formulas = { attention, compensated };
export const start = { source: [0, 0.5, 1, 3], target: [1.1, 0.1, 2, 0.4], logT: 0 };
const TITLE = "Four channels: drag the means of both domains";

export default {
  render({ model, el }) {
    let map;
    const frame = stage({
      model, el, start, title: TITLE,
      draw({ width, state: { source, target, logT } }) {
        const temperature = 10 ** logT;
        const x = linear(SPAN, [70, width - 12]);
        const rows = { source: 62, target: 190, given: 262 };
        map = { x, rows };
        const rowsOfA = attention(source, target, temperature);
        const given = compensated(source, target, temperature);
        const label = (name, words, kind) => shape("text", { x: 0, y: rows[name] + 4, class: `live-key ${kind}` }, words);
        const rule = (at) => shape("line", { x1: x.range[0], x2: x.range[1], y1: at, y2: at, class: "live-grid" });
        const parts = [
          Object.values(rows).map(rule),
          label("source", "source", "source"), label("target", "target", "target"), label("given", "received", "model"),
          rowsOfA.map((row, i) => row.map((a, j) => shape("line", {
            x1: x(source[i]), y1: rows.source, x2: x(target[j]), y2: rows.target,
            class: "live-link model", "stroke-width": 0.5 + 9 * a, opacity: 0.12 + 0.78 * a,
          }))),
          source.map((m) => point(x(m), rows.source, "source", false, 5)), // below the knobs, for paper
          target.map((m) => point(x(m), rows.target, "target", false, 5)),
          given.map((m, i) => [
            shape("circle", { cx: x(m), cy: rows.given, r: 8, class: "live-point model" }),
            shape("text", { x: x(m), y: rows.given + 26 + (i % 2) * 16, "text-anchor": "middle", class: "live-tick" }, `${i + 1}`),
          ]),
          source.map((m, i) => shape("text", { x: x(m), y: rows.source - 18, "text-anchor": "middle", class: "live-tick" }, `${i + 1}`)),
          target.map((m, j) => shape("text", { x: x(m), y: rows.target + 28, "text-anchor": "middle", class: "live-tick" }, `${j + 1}`)),
          shape("text", { x: x.range[0], y: 18, class: "live-title" }, "line width: attention"),
        ];
        const words = `Temperature ${digits(temperature, 2)}. ` + source.map((m, i) => {
          const j = rowsOfA[i].indexOf(Math.max(...rowsOfA[i]));
          return `Channel ${i + 1} at ${digits(m)} attends most to channel ${j + 1} of the target ` +
            `(${Math.round(100 * rowsOfA[i][j])} %) and receives ${digits(given[i], 2)}.`;
        }).join(" ");
        return { height: 312, parts, words };
      },
    });
    slider(frame, {
      name: "logT", label: "Temperature T", min: -2, max: 2, step: 0.05, text: (value) => digits(10 ** value, 2),
    });
    for (const name of ["source", "target"])
      start[name].forEach((_, i) =>
        knob(frame, {
          label: `Mean of channel ${i + 1} in the ${name}`, kind: name,
          place: (state) => [map.x(state[name][i]), map.rows[name]],
          moved: (px) => {
            const means = [...frame.state()[name]];
            means[i] = clamp(map.x.back(px), SPAN);
            frame.change({ [name]: means });
          },
          text: (state) => digits(state[name][i], 2),
        }));
    return frame.stop;
  },
};
