// DANN: a discriminator's line and the shift of the target's features, one gradient step after the other, with reversal.
import { axes, buttons, clamp, crossing, digits, knob, line, linear, normal, panels, point, shape, slider, stage } from "./drawing.js";

const COUNT = 40;
const SPAN = [-4, 4];
const Z = normal(5, 4 * COUNT);
const cloud = (from) => Array.from({ length: COUNT }, (_, i) => [0.7 * Z[from + 2 * i], 0.7 * Z[from + 2 * i + 1]]);
const SOURCE = cloud(0);
const TARGET = cloud(2 * COUNT);
const LONG = 240; // points of the trail that are kept

const sigmoid = (z) => 1 / (1 + Math.exp(-z));
const softplus = (z) => Math.max(z, 0) + Math.log1p(Math.exp(-Math.abs(z)));

/**
 * The discriminator's loss, the mean of −log D on the source and −log(1 − D) on the target with D = σ(w · f + b), and
 * its gradients in w, b and in the shift that is added to the target's features.
 */
export function domainLoss(source, target, shift, w, b) {
  let loss = 0;
  const gradient = { w: [0, 0], b: 0, shift: [0, 0] };
  const add = (rows, sign, move) =>
    rows.forEach((row) => {
      const f = [row[0] + move[0], row[1] + move[1]];
      const z = w[0] * f[0] + w[1] * f[1] + b;
      const weight = 0.5 / rows.length;
      loss += weight * softplus(-sign * z);
      const slope = -sign * sigmoid(-sign * z) * weight;
      gradient.w[0] += slope * f[0];
      gradient.w[1] += slope * f[1];
      gradient.b += slope;
      if (sign < 0) for (const k of [0, 1]) gradient.shift[k] += slope * w[k];
    });
  add(source, 1, [0, 0]);
  add(target, -1, shift);
  return { loss, gradient };
}

/** One step of both players: the discriminator descends, the features ascend with λ times its gradient. */
export function step({ shift, w, b }, rate, lambda, source = SOURCE, target = TARGET) {
  const { gradient } = domainLoss(source, target, shift, w, b);
  return {
    w: w.map((v, k) => v - rate * gradient.w[k]),
    b: b - rate * gradient.b,
    shift: shift.map((v, k) => v + rate * lambda * gradient.shift[k]),
  };
}

const BEGIN = { shift: [2.4, 1.2], w: [0, 0], b: 0, trail: [], steps: 0 };
const PLAYED = 150; // steps that a page shows before it is touched

/** The state after `count` more steps, with the way there. */
function played(now, count) {
  let { trail } = now;
  for (let i = 0; i < count; i++) {
    const { loss } = domainLoss(SOURCE, TARGET, now.shift, now.w, now.b);
    trail = [...trail, { shift: now.shift, loss, steps: now.steps }];
    now = { ...now, ...step(now, 10 ** now.logRate, now.lambda), steps: now.steps + 1 };
  }
  return { ...now, trail: trail.length > LONG ? trail.filter((_, i) => i % 2 === 0) : trail };
}

export const formulas = { domainLoss, step };
export const start = played({ ...BEGIN, lambda: 1, logRate: 0 }, PLAYED);
const TITLE = "A saddle: the discriminator's line and the target's shift, step by step";

export default {
  render({ model, el }) {
    let map;
    let playing = 0;
    const frame = stage({
      model, el, start, title: TITLE,
      draw({ width, state }) {
        const { shift, w, b, trail, steps } = state;
        const { loss } = domainLoss(SOURCE, TARGET, shift, w, b);
        const { boxes, height } = panels(width, 2, { ratio: 0.9 });
        const [x, y] = [linear(SPAN, boxes[0].x), linear([-3.6, 3.6], boxes[0].y)];
        const last = Math.max(100, steps);
        const [u, v] = [linear([0, last], boxes[1].x), linear([0.2, 0.9], boxes[1].y)];
        map = { x, y };
        const cut = crossing([w[0], w[1], b], x.domain, y.domain);
        const ticks = [0, last / 2, last].map(Math.round);
        const parts = [
          axes(x, y, { title: "features", xticks: [-3, 0, 3], yticks: [-3, 0, 3] }),
          SOURCE.map((f) => point(x(f[0]), y(f[1]), "source")),
          TARGET.map((f) => [f[0] + shift[0], f[1] + shift[1]])
            .filter(([p, q]) => Math.abs(p) < 4 && Math.abs(q) < 3.6)
            .map(([p, q]) => point(x(p), y(q), "target")),
          trail.length > 1 ? line(x, y, trail.map((p) => p.shift), { class: "live-line target thin" }) : [],
          cut.length ? line(x, y, cut, { class: "live-line accent" }) : [],
          axes(u, v, { title: `loss ${digits(loss, 2)}, dashed: log 2`, xlabel: "steps", xticks: ticks, yticks: [0.2, 0.4, 0.6, 0.8] }),
          line(u, v, [[0, Math.LN2], [last, Math.LN2]], { class: "live-line neutral dashed" }),
          trail.length > 1 ? line(u, v, trail.map((p) => [p.steps, clamp(p.loss, [0.2, 0.9])]), { class: "live-line accent" }) : [],
        ];
        const words = `After ${steps} steps with λ = ${digits(state.lambda)} the target is shifted by ${digits(shift[0], 2)}, ` +
          `${digits(shift[1], 2)}; the discriminator's loss is ${digits(loss, 2)}.`;
        return { height, parts, words };
      },
    });
    const advance = (count) => frame.change(played(frame.state(), count));
    const stop = () => (playing = void cancelAnimationFrame(playing) || 0);
    const play = () => {
      advance(1);
      playing = frame.state().steps < 3000 ? requestAnimationFrame(play) : 0;
    };
    slider(frame, { name: "lambda", label: "Reversal λ", min: 0, max: 3, step: 0.1, text: (value) => digits(value) });
    slider(frame, { name: "logRate", label: "Learning rate", min: -1.5, max: 0.7, step: 0.1, text: (v) => digits(10 ** v, 2) });
    buttons(frame, {
      "One step": () => { stop(); advance(1); },
      "20 steps": () => { stop(); advance(20); },
      "Play or pause": () => (playing ? stop() : play()),
      "Start over": () => { stop(); frame.change(BEGIN); },
    });
    knob(frame, {
      label: "Shift of the target", kind: "target",
      place: ({ shift }) => [map.x(clamp(shift[0], SPAN)), map.y(clamp(shift[1], [-3.6, 3.6]))],
      moved: (px, py) => {
        stop();
        frame.change({ shift: [clamp(map.x.back(px), SPAN), clamp(map.y.back(py), [-3.6, 3.6])], trail: [], steps: 0 });
      },
      text: ({ shift }) => `${digits(shift[0])}, ${digits(shift[1])}`,
    });
    return () => { stop(); frame.stop(); };
  },
};
