// MMD: two samples on a line whose points are dragged, and the function that tells them apart most.
import { axes, clamp, digits, knob, line, linear, point, shape, slider, stage } from "./drawing.js";

const SPAN = [-5, 5];

/** The Gaussian kernel exp(−(x − y)² / 2σ²). */
const kernel = (x, y, sigma) => Math.exp(-((x - y) ** 2) / (2 * sigma ** 2));
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
const meanKernel = (xs, ys, sigma) => mean(xs.map((x) => mean(ys.map((y) => kernel(x, y, sigma)))));

/** The biased MMD² of two samples. */
export function mmd2(xs, ys, sigma) {
  return meanKernel(xs, xs, sigma) + meanKernel(ys, ys, sigma) - 2 * meanKernel(xs, ys, sigma);
}

/** The witness function, not scaled: the mean kernel to the source minus that to the target. */
export function witness(point, xs, ys, sigma) {
  return meanKernel([point], xs, sigma) - meanKernel([point], ys, sigma);
}

export const formulas = { mmd2, witness };
export const start = { source: [-2.4, -1.5, -1.1, -0.4, 0.5], target: [0.1, 0.9, 1.6, 2.1, 3.2], sigma: 1 };
const TITLE = "Drag the points of both samples: the witness function and MMD²";

export default {
  render({ model, el }) {
    let map;
    const frame = stage({
      model, el, start, title: TITLE,
      draw({ width, state: { source, target, sigma } }) {
        const x = linear(SPAN, [54, width - 8]);
        const rows = { source: 48, target: 78 };
        const y = linear([-1, 1], [290, 102]);
        map = { x, rows };
        const grid = Array.from({ length: 201 }, (_, i) => SPAN[0] + (i * (SPAN[1] - SPAN[0])) / 200);
        const curve = grid.map((u) => [u, witness(u, source, target, sigma)]);
        const filled = (sign, kind) =>
          line(x, y, [[SPAN[0], 0], ...curve.map(([u, v]) => [u, sign * Math.max(sign * v, 0)]), [SPAN[1], 0]], {
            class: `live-area ${kind}`,
          });
        const value = mmd2(source, target, sigma);
        const parts = [
          shape("text", { x: x.range[0], y: 20, class: "live-title" }, `MMD² = ${digits(value, 3)}`),
          Object.entries(rows).map(([name, at]) => [
            shape("line", { x1: x.range[0], x2: x.range[1], y1: at, y2: at, class: "live-grid" }),
            shape("text", { x: 0, y: at + 4, class: `live-key ${name}` }, name),
          ]),
          source.map((v) => point(x(v), rows.source, "source", false, 5)), // below the knobs, for paper
          target.map((v) => point(x(v), rows.target, "target", false, 5)),
          axes(x, y, {
            xlabel: "x", xticks: [-4, -2, 0, 2, 4], yticks: [-1, 0, 1],
          }),
          filled(1, "source"), filled(-1, "target"),
          line(x, y, curve, { class: "live-line ink" }),
          shape("text", { x: x.range[0] + 8, y: 120 }, "witness f(x)"),
        ];
        const far = curve.reduce((best, p) => (Math.abs(p[1]) > Math.abs(best[1]) ? p : best));
        const words = `Bandwidth ${digits(sigma, 2)}: MMD² is ${digits(value, 3)}; the witness is largest in size at ` +
          `x = ${digits(far[0])}, where it is ${digits(far[1], 2)}.`;
        return { height: 332, parts, words };
      },
    });
    slider(frame, {
      name: "sigma", label: "Bandwidth σ", min: 0.05, max: 5, step: 0.05, text: (value) => digits(value, 2),
    });
    for (const name of ["source", "target"])
      start[name].forEach((_, i) =>
        knob(frame, {
          label: `Point ${i + 1} of the ${name}`, kind: name,
          place: (state) => [map.x(state[name][i]), map.rows[name]],
          moved: (px) => {
            const points = [...frame.state()[name]];
            points[i] = clamp(map.x.back(px), SPAN);
            frame.change({ [name]: points });
          },
          text: (state) => digits(state[name][i]),
        }));
    return frame.stop;
  },
};
