// What the figures share: elements, scales, seeded numbers, things to drag. A figure is drawn in the pixels of the page,
// so that letters have the page's size on a phone as on a desk; colours are the variables of live.css.

/** An SVG element with attributes and children. */
export function shape(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes))
    if (value !== undefined) element.setAttribute(key, typeof value === "number" ? +value.toFixed(2) : value);
  element.append(...children);
  return element;
}

/** An HTML element with properties and children. */
export function html(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

/** A linear map from the domain to the range, and back. */
export function linear([d0, d1], [r0, r1]) {
  const map = (value) => r0 + ((value - d0) / (d1 - d0)) * (r1 - r0);
  map.back = (pixel) => d0 + ((pixel - r0) / (r1 - r0)) * (d1 - d0);
  map.domain = [d0, d1];
  map.range = [r0, r1];
  return map;
}

export const clamp = (value, [low, high]) => Math.min(Math.max(value, low), high);

/** Uniform numbers in [0, 1) from a seed, the same in every browser (mulberry32). */
export function uniform(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** `count` standard normal numbers from a seed (Box and Muller). */
export function normal(seed, count) {
  const draw = uniform(seed);
  return Array.from({ length: count }, () => Math.sqrt(-2 * Math.log(1 - draw())) * Math.cos(2 * Math.PI * draw()));
}

/** Digits that a reader needs: a real minus, no exponent. */
export const digits = (value, count = 1) => value.toFixed(count).replace(/^-(?=.*[1-9])/, "−").replace(/^-/, "");

/**
 * The frame of a figure: its state in the model, its SVG, its controls, and its words for those who do not see it.
 *
 * `draw({ width, state })` is called at every change and every new width; it returns the height it needs, `paint`, a
 * function that fills the SVG's layer, and `words`, one sentence that says the state.
 */
export function stage({ model, el, start, title, draw }) {
  const layer = shape("g");
  const knobs = shape("g");
  const picture = shape("svg", { role: "group", "aria-label": title }, layer, knobs);
  const controls = html("div", { className: "live-controls" });
  const said = html("p", { className: "live-said", ariaLive: "polite" });
  el.classList.add("live-stage");
  el.replaceChildren(controls, picture, said);
  let waiting = 0;
  let saying = 0;
  const updates = [];
  const state = () => ({ ...start, ...model.get("state") });
  const change = (part) => {
    model.set("state", { ...state(), ...part });
    model.save_changes();
    later();
  };
  const now = () => {
    waiting = 0;
    const width = el.clientWidth;
    if (!width) return;
    const current = state();
    const { height, parts, words } = draw({ width, state: current });
    for (const [name, value] of Object.entries({ width, height, viewBox: `0 0 ${width} ${height}` }))
      picture.setAttribute(name, value);
    layer.replaceChildren(...parts.flat(Infinity));
    for (const update of updates) update(current);
    clearTimeout(saying); // words when the hand rests, not at every pixel
    saying = setTimeout(() => said.textContent !== words && (said.textContent = words), 250);
  };
  const later = () => (waiting ||= requestAnimationFrame(now));
  model.on?.("change:state", later);
  const watcher = new ResizeObserver(later);
  watcher.observe(el);
  const frame = { change, state, picture, knobs, controls, updates };
  requestAnimationFrame(now);
  return { ...frame, stop: () => watcher.disconnect() };
}

/**
 * A knob to drag, by pointer, touch or the arrow keys. `place(state)` gives its pixels, `moved(x, y)` takes new ones;
 * `step` is what an arrow key moves, in pixels, five times that with Shift.
 */
export function knob(frame, { label, kind, place, moved, text, step = 6 }) {
  const mark = shape("circle", { r: 9, class: `live-knob ${kind}` });
  const element = shape("g", { tabindex: 0, role: "slider", "aria-label": label, class: "live-handle" },
    shape("circle", { r: 22, fill: "transparent" }), mark);
  let at = [0, 0];
  let grip = null;
  const pixel = (event) => {
    const box = frame.picture.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  element.addEventListener("pointerdown", (event) => {
    element.setPointerCapture(event.pointerId);
    const [x, y] = pixel(event);
    grip = [at[0] - x, at[1] - y];
    element.focus({ preventScroll: true });
    event.preventDefault();
  });
  element.addEventListener("pointermove", (event) => {
    if (!grip) return;
    const [x, y] = pixel(event);
    moved(x + grip[0], y + grip[1]);
  });
  for (const name of ["pointerup", "pointercancel"]) element.addEventListener(name, () => (grip = null));
  element.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!way) return;
    const far = step * (event.shiftKey ? 5 : 1);
    const [x, y] = place(frame.state()); // two keys may come before the next frame is drawn
    moved(x + way[0] * far, y + way[1] * far);
    event.preventDefault();
  });
  frame.updates.push((state) => {
    at = place(state);
    element.setAttribute("transform", `translate(${at[0]} ${at[1]})`);
    const words = text(state);
    element.setAttribute("aria-valuetext", words);
    element.setAttribute("aria-valuenow", Math.round(at[0]));
  });
  frame.knobs.append(element);
}

/** A slider above the picture; `name` is the part of the state that it moves. */
export function slider(frame, { name, label, min, max, step, text }) {
  const input = html("input", { type: "range", min, max, step, autocomplete: "off" });
  const output = html("output");
  input.addEventListener("input", () => frame.change({ [name]: +input.value }));
  frame.updates.push((state) => {
    input.value = state[name];
    output.value = text(state[name]);
    input.setAttribute("aria-valuetext", output.value);
  });
  frame.controls.append(html("label", {}, html("span", {}, label), input, output));
}

/** One of a few choices above the picture, as buttons that say which is pressed. */
export function choice(frame, { name, label, options }) {
  const made = Object.entries(options).map(([value, words]) => {
    const element = html("button", { type: "button", textContent: words });
    element.addEventListener("click", () => frame.change({ [name]: value }));
    frame.updates.push((state) => element.setAttribute("aria-pressed", state[name] === value));
    return element;
  });
  frame.controls.append(html("div", { className: "live-choice", role: "group", ariaLabel: label }, ...made));
}

/** Buttons above the picture, and what each of them does. */
export function buttons(frame, actions) {
  const made = Object.entries(actions).map(([label, pressed]) => {
    const element = html("button", { type: "button", textContent: label });
    element.addEventListener("click", () => pressed(frame.state()));
    return element;
  });
  frame.controls.append(html("div", { className: "live-choice" }, ...made));
}

/** The frame of a panel: a box, ticks, and words at the axes. */
export function axes(x, y, { xlabel, ylabel, title, xticks = [], yticks = [], mark = (v) => digits(v, v % 1 ? 1 : 0), xmark = mark }) {
  const [left, right] = x.range;
  const [bottom, top] = y.range;
  const parts = [
    shape("rect", { x: left, y: top, width: right - left, height: bottom - top, class: "live-panel" }),
    xticks.map((v) => [
      shape("line", { x1: x(v), x2: x(v), y1: bottom, y2: top, class: "live-grid" }),
      shape("text", { x: x(v), y: bottom + 16, "text-anchor": "middle", class: "live-tick" }, xmark(v)),
    ]),
    yticks.map((v) => [
      shape("line", { x1: left, x2: right, y1: y(v), y2: y(v), class: "live-grid" }),
      shape("text", { x: left - 5, y: y(v) + 4, "text-anchor": "end", class: "live-tick" }, mark(v)),
    ]),
  ];
  if (title) parts.push(shape("text", { x: left, y: top - 9, class: "live-title" }, title));
  if (xlabel)
    parts.push(shape("text", { x: (left + right) / 2, y: bottom + 34, "text-anchor": "middle" }, xlabel));
  if (ylabel) {
    const at = `translate(${left - 30} ${(top + bottom) / 2}) rotate(-90)`;
    parts.push(shape("text", { transform: at, "text-anchor": "middle" }, ylabel));
  }
  return parts;
}

/** A line through points in the panel's own numbers. */
export function line(x, y, points, attributes = {}) {
  const path = points.map(([u, v], i) => `${i ? "L" : "M"}${x(u).toFixed(1)} ${y(v).toFixed(1)}`).join("");
  return shape("path", { d: path, fill: "none", ...attributes });
}

/** A point of the source, a circle, or of the target, a triangle; hollow if it is of the second class. */
export function point(px, py, domain, hollow = false, size = 4) {
  const look = { class: `live-point ${domain}${hollow ? " hollow" : ""}` };
  if (domain === "source") return shape("circle", { cx: px, cy: py, r: size, ...look });
  const s = size * 1.25;
  return shape("path", { d: `M${px.toFixed(1)} ${(py - s).toFixed(1)}l${s} ${1.8 * s}h${-2 * s}z`, ...look });
}

/** The part of the line a·u + b·v + c = 0 inside a box, as two points; empty if it misses the box. */
export function crossing([a, b, c], [u0, u1], [v0, v1]) {
  const ends = [];
  if (b !== 0) for (const u of [u0, u1]) ends.push([u, -(c + a * u) / b]);
  if (a !== 0) for (const v of [v0, v1]) ends.push([-(c + b * v) / a, v]);
  const inside = ends.filter(([u, v]) => u >= u0 - 1e-9 && u <= u1 + 1e-9 && v >= v0 - 1e-9 && v <= v1 + 1e-9);
  if (inside.length < 2) return [];
  const far = inside.reduce((best, p) => (dist(p, inside[0]) > dist(best, inside[0]) ? p : best));
  return [inside[0], far];
}

const dist = (p, q) => Math.hypot(p[0] - q[0], p[1] - q[1]);

/** Places for `count` panels: beside each other where the page is wide, below each other on a phone. */
export function panels(width, count, { ratio = 0.9, left = 42, right = 8, top = 28, bottom = 42, narrow = 560 } = {}) {
  const columns = width < narrow ? 1 : count;
  const cell = width / columns;
  const inner = cell - left - right;
  const height = inner * (columns === 1 ? Math.min(ratio, 0.8) : ratio);
  const boxes = Array.from({ length: count }, (_, i) => {
    const x0 = (i % columns) * cell + left;
    const y0 = Math.floor(i / columns) * (height + top + bottom) + top;
    return { x: [x0, x0 + inner], y: [y0 + height, y0] };
  });
  return { boxes, height: Math.ceil(count / columns) * (height + top + bottom) };
}
