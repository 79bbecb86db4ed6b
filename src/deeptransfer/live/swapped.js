// CDAN: two classes in each domain, whose places in the target are dragged: what can a discriminator still tell?
import { axes, choice, clamp, digits, knob, linear, normal, panels, point, shape, stage } from "./drawing.js";

const SD = 0.45;
const BOX = { x: [-2.8, 2.8], y: [-2, 2] };
const PLACES = { source: { A: [-1.3, 0], B: [1.3, 0] } };
const CELLS = [28, 20]; // of the shading
const NOISE = normal(6, 240);

const gauss = (f, centre) => Math.exp(-((f[0] - centre[0]) ** 2 + (f[1] - centre[1]) ** 2) / (2 * SD ** 2)) / (2 * Math.PI * SD ** 2);

/**
 * The loss of the best discriminator of two lists of masses, −½ Σ p log D − ½ Σ q log(1 − D) with D = p / (p + q); it is
 * log 2 minus their Jensen–Shannon divergence.
 */
export function bayesLoss(p, q) {
  let loss = 0;
  for (let i = 0; i < p.length; i++) {
    if (p[i] > 0) loss -= 0.5 * p[i] * Math.log(p[i] / (p[i] + q[i]));
    if (q[i] > 0) loss -= 0.5 * q[i] * Math.log(q[i] / (p[i] + q[i]));
  }
  return loss;
}

/** Masses of a domain on a grid: of the rows taken for A, and of those taken for B. */
function masses(places, follow, [columns, rows]) {
  const [dx, dy] = [(BOX.x[1] - BOX.x[0]) / columns, (BOX.y[1] - BOX.y[0]) / rows];
  const taken = { A: [], B: [] };
  for (let r = 0; r < rows; r++)
    for (let c = 0; c < columns; c++) {
      const f = [BOX.x[0] + (c + 0.5) * dx, BOX.y[0] + (r + 0.5) * dy];
      const [a, b] = ["A", "B"].map((k) => 0.5 * gauss(f, places[k]) * dx * dy);
      const left = f[0] < 0;
      taken.A.push(follow === "class" ? a : left ? a + b : 0);
      taken.B.push(follow === "class" ? b : left ? 0 : a + b);
    }
  return { ...taken, all: taken.A.map((v, i) => v + taken.B[i]) };
}

export const formulas = { bayesLoss };
export const start = { A: [1.3, 0.3], B: [-1.3, -0.3], follow: "class" };
const TITLE = "Drag the target's classes: what DANN's and CDAN's discriminators can tell";

export default {
  render({ model, el }) {
    let map;
    const frame = stage({
      model, el, start, title: TITLE,
      draw({ width, state }) {
        const target = { A: state.A, B: state.B };
        const { boxes, height } = panels(width, 3, { ratio: 0.85, left: 14, right: 4, top: 46, bottom: 14 });
        const fine = { s: masses(PLACES.source, state.follow, [84, 60]), t: masses(target, state.follow, [84, 60]) };
        const coarse = { s: masses(PLACES.source, state.follow, CELLS), t: masses(target, state.follow, CELLS) };
        const dann = bayesLoss(fine.s.all, fine.t.all);
        const cdan = bayesLoss(fine.s.A, fine.t.A) + bayesLoss(fine.s.B, fine.t.B);
        const panel = (name, title, note, i) => {
          const [x, y] = [linear(BOX.x, boxes[i].x), linear(BOX.y, boxes[i].y)];
          if (i === 0) map = { x, y };
          const [w, h] = [(x.range[1] - x.range[0]) / CELLS[0], (y.range[0] - y.range[1]) / CELLS[1]];
          const depths = coarse.s[name].map((p, k) => {
            const q = coarse.t[name][k];
            const lean = (p - q) / (p + q || 1); // D above ½ leans to the source
            return Math.round(8 * lean * Math.min(1, (p + q) / 0.002));
          });
          const shades = {}; // one path for each depth of either colour, one box for each run of equal cells in a row
          for (let k = 0, next; k < depths.length; k = next) {
            const [c, r] = [k % CELLS[0], Math.floor(k / CELLS[0])];
            for (next = k + 1; next % CELLS[0] && depths[next] === depths[k]; ) next++;
            if (!depths[k]) continue;
            const [left, top, wide] = [x.range[0] + c * w, y.range[0] - (r + 1) * h, (next - k) * w];
            const box = `M${left.toFixed(1)} ${top.toFixed(1)}h${wide.toFixed(1)}v${h.toFixed(1)}h${(-wide).toFixed(1)}z`;
            shades[depths[k]] = (shades[depths[k]] ?? "") + box;
          }
          const shade = Object.entries(shades).map(([depth, path]) =>
            shape("path", {
              d: path, class: `live-bar ${depth > 0 ? "source" : "target"}`, opacity: 0.055 * Math.abs(depth),
              "shape-rendering": "crispEdges",
            }));
          const dots = ["source", "target"].map((domain, d) => ["A", "B"].map((k, c) => {
            const centre = (domain === "source" ? PLACES.source : target)[k];
            return Array.from({ length: 24 }, (_, n) => {
              const at = 48 * (2 * d + c) + 2 * n;
              return [centre[0] + SD * NOISE[at], centre[1] + SD * NOISE[at + 1]];
            }).filter((f) => {
              const taken = state.follow === "class" ? k : f[0] < 0 ? "A" : "B";
              return (name === "all" || taken === name) && Math.abs(f[0]) < 2.7 && Math.abs(f[1]) < 1.9;
            }).map((f) => point(x(f[0]), y(f[1]), domain, k === "B", 3.2));
          }));
          return [axes(x, y, {}), shade, dots,
            shape("text", { x: x.range[0], y: y.range[1] - 26, class: "live-title" }, title),
            shape("text", { x: x.range[0], y: y.range[1] - 8, class: "live-tick" }, note)];
        };
        const parts = [
          panel("all", `DANN, loss ${digits(dann, 2)}`, "all rows", 0),
          panel("A", `CDAN, loss ${digits(cdan, 2)}`, "rows taken for A", 1),
          panel("B", "", "rows taken for B", 2),
        ];
        const tell = (loss) => (loss > Math.LN2 - 0.03 ? "can tell nothing" : loss < 0.35 ? "tells most rows" : "tells some rows");
        const words = `Target: class A at ${state.A.map((v) => digits(v)).join(", ")}, class B at ${state.B.map((v) => digits(v)).join(", ")}; ` +
          `predictions follow the ${state.follow}. The best loss of DANN's discriminator is ${digits(dann, 2)}: it ${tell(dann)}. ` +
          `CDAN's is ${digits(cdan, 2)}: it ${tell(cdan)}.`;
        return { height, parts, words };
      },
    });
    choice(frame, {
      name: "follow", label: "Predictions follow",
      options: { class: "predictions follow the class", feature: "predictions follow the feature" },
    });
    for (const [k, name] of [["A", "full"], ["B", "hollow"]])
      knob(frame, {
        label: `Class ${k} of the target, ${name}`, kind: "target",
        place: (state) => [map.x(state[k][0]), map.y(state[k][1])],
        moved: (px, py) => frame.change({ [k]: [clamp(map.x.back(px), [-2.2, 2.2]), clamp(map.y.back(py), [-1.5, 1.5])] }),
        text: (state) => state[k].map((v) => digits(v)).join(", "),
      });
    return frame.stop;
  },
};
