// DAN: five kernels, their weights, and the power that the linear-time test has with them.
import { axes, buttons, choice, clamp, digits, knob, line, linear, panels, shape, slider, stage } from "./drawing.js";

export const SIGMA2 = [0.01, 0.1, 1, 10, 100];
const GRID = Array.from({ length: 241 }, (_, i) => -6 + 0.05 * i);
const Z95 = 1.6448536269514722; // the 0.95 quantile of a standard normal number
const NS = Array.from({ length: 61 }, (_, i) => 10 ** (1.5 + 0.05 * i));

const normalised = (density) => {
  const sum = density.reduce((total, v) => total + v, 0);
  return density.map((v) => v / sum);
};
const gauss = (x, mean, sd) => Math.exp(-((x - mean) ** 2) / (2 * sd * sd));

/** Masses of source and target on the grid: the target is shifted, wider, or has the teeth of a comb. */
export function masses(kind, size) {
  const source = normalised(GRID.map((x) => gauss(x, 0, 1)));
  const target = {
    shift: (x) => gauss(x, size, 1),
    spread: (x) => gauss(x, 0, 1 + size),
    comb: (x) => gauss(x, 0, 1) * (1 + size * Math.cos(8 * x)),
  }[kind];
  return { source, target: normalised(GRID.map(target)) };
}

/** A kernel's matrix times a vector, on the grid: the matrix depends on the distance alone. */
function smoothed(exponent, v) {
  const k = GRID.map((_, i) => Math.exp(-exponent * (0.05 * i) ** 2));
  return v.map((_, i) => {
    let sum = 0;
    for (let j = 0; j < v.length; j++) sum += k[Math.abs(i - j)] * v[j];
    return sum;
  });
}
const dot = (a, b) => a.reduce((sum, v, i) => sum + v * b[i], 0);

/**
 * Mean d and covariance Q of h = k(x, x') + k(y, y') − k(x, y') − k(x', y), for x, x' from p and y, y' from q, one entry
 * for each kernel.
 */
export function termMoments(p, q, sigma2 = SIGMA2) {
  const c = sigma2.map((s) => 1 / (2 * s));
  const kp = c.map((e) => smoothed(e, p));
  const kq = c.map((e) => smoothed(e, q));
  const pp = kp.map((v) => dot(p, v));
  const qq = kq.map((v) => dot(q, v));
  const pq = kq.map((v) => dot(p, v));
  const d = c.map((_, u) => pp[u] + qq[u] - 2 * pq[u]);
  const Q = c.map(() => new Array(c.length));
  for (let u = 0; u < c.length; u++)
    for (let v = u; v < c.length; v++) {
      const both = smoothed(c[u] + c[v], p);
      const bothQ = smoothed(c[u] + c[v], q);
      const shared = (w, a, b) => w.reduce((sum, mass, i) => sum + mass * a[i] * b[i], 0);
      // E h_u h_v term by term: the same pair, pairs with one row in common, and pairs with none.
      const same = dot(p, both) + dot(q, bothQ) + 2 * dot(p, bothQ);
      const oneX = 2 * (shared(p, kp[u], kq[v]) + shared(p, kq[u], kp[v]));
      const oneY = 2 * (shared(q, kq[u], kp[v]) + shared(q, kp[u], kq[v]));
      const none = pp[u] * qq[v] + qq[u] * pp[v] + 2 * pq[u] * pq[v];
      Q[u][v] = Q[v][u] = same - oneX - oneY + none - d[u] * d[v];
    }
  return { d, Q };
}

/** The error function: a series near 0, a continued fraction beyond. */
const erf = (x) => {
  if (Math.abs(x) > 5.5) return Math.sign(x);
  if (Math.abs(x) < 2.5) {
    let [term, sum] = [x, x];
    for (let n = 1; n < 60; n++) sum += (term *= (-x * x) / n) / (2 * n + 1);
    return (2 / Math.sqrt(Math.PI)) * sum;
  }
  let tail = 0;
  for (let n = 60; n > 0; n--) tail = (n / 2) / (Math.abs(x) + tail);
  return Math.sign(x) * (1 - Math.exp(-x * x) / (Math.sqrt(Math.PI) * (Math.abs(x) + tail)));
};

/** Power of the linear-time test at level 5 % with n points in each sample: Φ(√(n/2) βᵀd / √(βᵀQβ) − z). */
export function power(beta, d, Q, n) {
  const sd = Math.sqrt(dot(beta, Q.map((row) => dot(row, beta))));
  return 0.5 * (1 + erf((Math.sqrt(n / 2) * (dot(beta, d) / sd) - Z95) / Math.SQRT2));
}

/** The weights of most power: least βᵀ(Q + ξI)β with dᵀβ = 1 and β ≥ 0, scaled to sum 1; all sets of kernels are tried. */
export function best(d, Q, ridge = 1e-4) {
  let [least, found] = [Infinity, d.map((v) => (v === Math.max(...d) ? 1 : 0))];
  for (let set = 1; set < 1 << d.length; set++) {
    const used = d.map((_, u) => u).filter((u) => set & (1 << u));
    const solved = solve(used.map((u) => used.map((v) => Q[u][v] + (u === v ? ridge : 0))), used.map((u) => d[u]));
    const size = dot(used.map((u) => d[u]), solved); // dᵀ(Q + ξI)⁻¹d on this set, whose inverse is the objective
    if (!solved.every((v) => v >= 0) || !(size > 0) || 1 / size >= least) continue;
    const sum = solved.reduce((total, v) => total + v, 0);
    [least, found] = [1 / size, d.map((_, u) => (used.includes(u) ? solved[used.indexOf(u)] / sum : 0))];
  }
  return found;
}

/** A x = b by elimination with pivots. */
function solve(A, b) {
  const M = A.map((row, i) => [...row, b[i]]);
  for (let k = 0; k < M.length; k++) {
    let pivot = k;
    for (let i = k + 1; i < M.length; i++) if (Math.abs(M[i][k]) > Math.abs(M[pivot][k])) pivot = i;
    [M[k], M[pivot]] = [M[pivot], M[k]];
    for (let i = k + 1; i < M.length; i++) {
      const factor = M[i][k] / M[k][k];
      for (let j = k; j <= M.length; j++) M[i][j] -= factor * M[k][j];
    }
  }
  const x = new Array(M.length);
  for (let k = M.length - 1; k >= 0; k--) {
    x[k] = M[k][M.length];
    for (let j = k + 1; j < M.length; j++) x[k] -= M[k][j] * x[j];
    x[k] /= M[k][k];
  }
  return x;
}

const UNIFORM = SIGMA2.map(() => 1 / SIGMA2.length);
export const formulas = { masses, termMoments, power, best, erf };
export const start = { kind: "comb", size: 0.8, raw: [1, 1, 1, 1, 1] };
const TITLE = "Drag the kernels' weights: the power of the test";

export default {
  render({ model, el }) {
    let map;
    let known = { key: "" };
    const facts = ({ kind, size }) => {
      const key = `${kind} ${size}`;
      if (known.key !== key) {
        const both = masses(kind, size);
        known = { key, ...both, ...termMoments(both.source, both.target) };
      }
      return known;
    };
    const weights = ({ raw }) => {
      const sum = raw.reduce((total, v) => total + v, 0);
      return sum > 0 ? raw.map((v) => v / sum) : UNIFORM;
    };
    const frame = stage({
      model, el, start, title: TITLE,
      draw({ width, state }) {
        const { source, target, d, Q } = facts(state);
        const beta = weights(state);
        const { boxes, height } = panels(width, 3, { ratio: 1, left: 36, right: 6, narrow: 640 });
        const [x, y] = [linear([-4, 4], boxes[0].x), linear([0, 0.045], boxes[0].y)];
        const [place, size] = [linear([-0.6, 4.6], boxes[1].x), linear([0, 1.05], boxes[1].y)];
        const [n, share] = [linear([1.5, 4.5], boxes[2].x), linear([0, 104], boxes[2].y)];
        map = { place, size };
        const inside = (mass) => GRID.map((v, i) => [v, mass[i]]).filter(([v]) => Math.abs(v) <= 4);
        const curve = (w) => NS.map((count) => [Math.log10(count), 100 * power(w, d, Q, count)]);
        const at = (w) => Math.round(100 * power(w, d, Q, 1000));
        const parts = [
          axes(x, y, { title: "the domains", xlabel: "x", xticks: [-3, 0, 3] }),
          line(x, y, inside(source), { class: "live-line source" }),
          line(x, y, inside(target), { class: "live-line target" }),
          axes(place, size, { title: "weights β", xlabel: "bandwidth σ²", xticks: [0, 1, 2, 3, 4], yticks: [0, 0.5, 1], xmark: (u) => SIGMA2[u] }),
          beta.map((b, u) => shape("rect", {
            x: place(u - 0.3), width: place(0.3) - place(-0.3), y: size(b), height: size(0) - size(b), class: "live-bar model-fill",
          })),
          axes(n, share, { title: `power at 1,000: ${at(beta)} %`, xlabel: "points in each sample", xticks: [2, 3, 4], yticks: [0, 50, 100] }),
          line(n, share, curve(UNIFORM), { class: "live-line neutral dashed" }),
          line(n, share, curve(beta), { class: "live-line model" }),
        ];
        const shown = beta.map((b, u) => `${digits(b, 2)} for ${SIGMA2[u]}`).join(", ");
        const words = `Domains that differ by a ${state.kind} of ${digits(state.size, 2)}; weights ${shown}. With 1,000 points in each ` +
          `sample the power is ${at(beta)} per cent; with equal weights it is ${at(UNIFORM)}.`;
        return { height, parts, words };
      },
    });
    choice(frame, { name: "kind", label: "How the domains differ", options: { shift: "shift", spread: "spread", comb: "comb" } });
    buttons(frame, {
      "Best weights": (state) => frame.change({ raw: best(facts(state).d, facts(state).Q) }),
      "Equal weights": () => frame.change({ raw: UNIFORM }),
    });
    slider(frame, { name: "size", label: "Size of the difference", min: 0.1, max: 1, step: 0.05, text: (v) => digits(v, 2) });
    SIGMA2.forEach((sigma2, u) =>
      knob(frame, {
        label: `Weight of the kernel with σ² = ${sigma2}`, kind: "model",
        place: (state) => [map.place(u), map.size(weights(state)[u])],
        moved: (_, py) => {
          // The others keep their proportions and share what is left.
          const beta = weights(frame.state());
          const own = clamp(map.size.back(py), [0, 1]);
          const rest = 1 - beta[u];
          frame.change({ raw: beta.map((b, v) => (v === u ? own : rest > 1e-9 ? (b * (1 - own)) / rest : (1 - own) / 4)) });
        },
        text: (state) => digits(weights(state)[u], 2),
      }));
    return frame.stop;
  },
};
