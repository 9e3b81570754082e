// A scatter plot on a canvas: zoom, box and lasso, hover and arrow keys, all in the browser. See scatter_view.py for
// the data; the columns lie in window.crosscopeColumns, where scatter_columns.js puts them.
const views = new WeakMap();
const PAD = { left: 58, right: 12, top: 10, bottom: 42 };
const CELL = 12; // of the grid that finds the point under the pointer, in pixels
const SHADES = 32;

class ScatterView {
  constructor(root) {
    this.root = root;
    this.tool = "box";
    this.views = new Map(); // what each pair of axes shows
    this.build();
    new ResizeObserver(() => this.resized()).observe(this.frame);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    window.addEventListener("crosscope-columns", () => this.arrange());
  }

  build() {
    const bar = element("div", "tools");
    this.tools = Object.fromEntries(["box", "lasso", "move"].map((name) => [name, button(name, () => this.use(name))]));
    bar.setAttribute("role", "toolbar");
    bar.setAttribute("aria-label", "What dragging does");
    bar.append(...Object.values(this.tools), button("whole plot", () => this.whole()));
    this.note = element("span", "note");
    bar.append(this.note);
    this.frame = element("div", "points");
    this.frame.tabIndex = 0;
    this.frame.setAttribute("role", "application");
    this.frame.setAttribute("aria-roledescription", "scatter plot");
    this.canvas = element("canvas");
    this.over = element("canvas", "over");
    this.tip = element("div", "tip");
    this.tip.hidden = true;
    this.said = element("div", "said");
    this.said.setAttribute("aria-live", "polite");
    this.frame.append(this.canvas, this.over, this.tip);
    this.scale = element("div", "scale");
    this.root.replaceChildren(bar, this.frame, this.scale, this.said);
    this.frame.places = () => this.places();
    for (const [kind, act] of Object.entries({
      pointerdown: this.down, pointermove: this.moved, pointerup: this.up, pointercancel: this.cancel,
      pointerleave: this.left, wheel: this.wheel, keydown: this.key, blur: this.left, dblclick: this.whole,
    })) this.frame.addEventListener(kind, act.bind(this), { passive: false });
    this.use("box");
  }

  use(tool) {
    this.tool = tool;
    for (const [name, node] of Object.entries(this.tools)) node.setAttribute("aria-pressed", String(name === tool));
    this.frame.style.touchAction = tool === "move" ? "none" : "pan-y";
  }

  update(data) {
    const changed = this.data?.revision !== data.revision;
    this.data = data;
    this.frame.setAttribute("aria-label", data.label);
    if (changed) this.arrange();
  }

  column(name) { return window.crosscopeColumns?.get(`${this.data.version} ${name}`); }

  // Which points there are, where they lie on the axes, in which order and colour they are drawn.
  arrange() {
    if (!this.data) return;
    const { x, y, colour } = this.data.axes;
    const [xs, ys, shades, sizes, top] = [x.column, y.column, colour.column, "frequency", "on_top"]
      .map((name) => this.column(name));
    if (!xs || !ys || !shades || !sizes || !top) return; // they come
    const bits = Uint8Array.from(atob(this.data.keep), (c) => c.charCodeAt(0));
    const onAxis = (values, axis) => (axis.log ? values.map((v) => (v > 0 ? Math.log10(v) : NaN)) : values);
    this.x = onAxis(xs, x); this.y = onAxis(ys, y); this.z = onAxis(shades, colour);
    this.raw = [xs, ys, shades];
    const ids = [];
    for (let i = 0; i < xs.length; i++) {
      if (bits[i >> 3] & (128 >> (i & 7)) && Number.isFinite(this.x[i]) && Number.isFinite(this.y[i])) ids.push(i);
    }
    this.ranges = [range(this.x, ids), range(this.y, ids)];
    const [low, high] = colour.ends ?? range(this.z, ids, 0);
    this.ends = [low, high];
    const few = ids.length < 3000 ? 1.5 : 1;
    this.shade = new Uint8Array(xs.length); this.size = new Float32Array(xs.length);
    for (const id of ids) {
      const at = (this.z[id] - low) / (high - low || 1);
      this.shade[id] = Number.isFinite(at) ? Math.max(0, Math.min(SHADES - 1, Math.floor(at * SHADES))) : SHADES;
      const often = sizes[id] > 0 ? Math.max(0, Math.min(1, (Math.log10(sizes[id]) + 6) / 5)) : 0;
      this.size[id] = few * (2 + 3.5 * often);
    }
    const key = Float64Array.from(ids, (id) => (top[id] * (SHADES + 1) + this.shade[id]) * 1e7 + id).sort();
    this.order = Uint32Array.from(key, (k) => k % 1e7);
    this.inside = this.data.area.length ? this.order.map((id) => within(this.x[id], this.y[id], this.data.area)) : null;
    this.legend();
    this.draw();
    this.frame.dataset.drawn = String(Number(this.frame.dataset.drawn ?? 0) + 1);
  }

  get view() {
    const key = `${this.data.version} ${this.data.axes.x.column} ${this.data.axes.y.column}`;
    return this.views.get(key) ?? this.ranges;
  }

  set view(ranges) {
    const key = `${this.data.version} ${this.data.axes.x.column} ${this.data.axes.y.column}`;
    if (ranges) this.views.set(key, ranges); else this.views.delete(key);
    this.draw();
  }

  whole() { this.view = null; }

  resized() { if (this.order) this.draw(); }

  get inner() {
    return [this.frame.clientWidth - PAD.left - PAD.right, this.frame.clientHeight - PAD.top - PAD.bottom];
  }

  toPixel(x, y) {
    const [[x0, x1], [y0, y1]] = this.view, [width, height] = this.inner;
    return [PAD.left + ((x - x0) / (x1 - x0)) * width, PAD.top + (1 - (y - y0) / (y1 - y0)) * height];
  }

  toValue(px, py) {
    const [[x0, x1], [y0, y1]] = this.view, [width, height] = this.inner;
    return [x0 + ((px - PAD.left) / width) * (x1 - x0), y0 + (1 - (py - PAD.top) / height) * (y1 - y0)];
  }

  colour(name) { return getComputedStyle(this.root).getPropertyValue(name); }

  context(canvas) {
    const ratio = window.devicePixelRatio || 1, [width, height] = [this.frame.clientWidth, this.frame.clientHeight];
    if (canvas.width !== width * ratio || canvas.height !== height * ratio) {
      canvas.width = width * ratio; canvas.height = height * ratio;
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    return context;
  }

  draw() {
    if (!this.order || !this.frame.clientWidth) return;
    const context = this.context(this.canvas), [width, height] = this.inner;
    const text = getComputedStyle(this.note).color, line = getComputedStyle(this.frame).borderTopColor;
    this.ticks(context, text, line);
    context.save();
    context.beginPath();
    context.rect(PAD.left, PAD.top, width, height);
    context.clip();
    const ramp = this.data.axes.colour.ramp, round = this.order.length < 20000;
    this.grid = new Map();
    this.columns = Math.ceil(this.frame.clientWidth / CELL);
    let last = -1;
    for (let place = 0; place < this.order.length; place++) {
      const id = this.order[place], [px, py] = this.toPixel(this.x[id], this.y[id]);
      if (px < PAD.left || py < PAD.top || px > PAD.left + width || py > PAD.top + height) continue;
      const shade = this.shade[id], alpha = this.inside && !this.inside[place] ? 0.18 : 0.8;
      if (shade !== last) context.fillStyle = shade === SHADES ? line : mixed(ramp, (shade + 0.5) / SHADES);
      last = shade;
      context.globalAlpha = alpha;
      const size = this.size[id];
      if (round) { context.beginPath(); context.arc(px, py, size, 0, 7); context.fill(); }
      else context.fillRect(px - size / 2, py - size / 2, size, size);
      const cell = Math.floor(py / CELL) * this.columns + Math.floor(px / CELL);
      const held = this.grid.get(cell);
      if (held) held.push(id); else this.grid.set(cell, [id]);
    }
    context.globalAlpha = 1;
    this.marks(context, text);
    if (this.data.area.length) this.outline(context, this.data.area.map(([x, y]) => this.toPixel(x, y)), text);
    context.restore();
    this.overlay();
  }

  // Rings about labelled latents, stars on starred ones.
  marks(context, colour) {
    context.strokeStyle = context.fillStyle = colour;
    context.font = "14px system-ui, sans-serif";
    context.textAlign = "center";
    const kept = new Set(this.order), at = (id) => this.toPixel(this.x[id], this.y[id]);
    for (const id of Object.keys(this.data.labels).map(Number)) {
      if (!kept.has(id)) continue;
      const [px, py] = at(id);
      context.beginPath(); context.arc(px, py, this.size[id] + 2.5, 0, 7); context.stroke();
    }
    for (const id of this.data.starred) if (kept.has(id)) { const [px, py] = at(id); context.fillText("★", px, py + 5); }
  }

  outline(context, corners, colour) {
    context.strokeStyle = colour;
    context.lineWidth = 1.5;
    context.setLineDash([4, 3]);
    context.beginPath();
    corners.forEach(([px, py], i) => (i ? context.lineTo(px, py) : context.moveTo(px, py)));
    context.closePath();
    context.stroke();
    context.setLineDash([]);
  }

  ticks(context, text, line) {
    const [[x0, x1], [y0, y1]] = this.view, [width, height] = this.inner;
    context.font = "12px system-ui, sans-serif";
    context.lineWidth = 1;
    context.fillStyle = text; context.strokeStyle = line;
    context.textAlign = "center";
    for (const tick of steps(x0, x1, width / 80)) {
      const [px] = this.toPixel(tick, y0);
      context.beginPath(); context.moveTo(px, PAD.top); context.lineTo(px, PAD.top + height); context.stroke();
      context.fillText(number(tick), px, PAD.top + height + 16);
    }
    context.fillText(this.data.axes.x.title, PAD.left + width / 2, PAD.top + height + 34);
    context.textAlign = "right";
    for (const tick of steps(y0, y1, height / 50)) {
      const [, py] = this.toPixel(x0, tick);
      context.beginPath(); context.moveTo(PAD.left, py); context.lineTo(PAD.left + width, py); context.stroke();
      context.fillText(number(tick), PAD.left - 6, py + 4);
    }
    context.save();
    context.translate(13, PAD.top + height / 2);
    context.rotate(-Math.PI / 2);
    context.textAlign = "center";
    context.fillText(this.data.axes.y.title, 0, 0);
    context.restore();
  }

  legend() {
    const { title, ramp } = this.data.axes.colour, bar = element("span", "ramp");
    bar.style.background = `linear-gradient(to right, ${ramp.join(", ")})`;
    const [low, high] = this.ends.map((end) => number(end));
    this.scale.replaceChildren(element("span", "", title), element("span", "", low), bar, element("span", "", high));
    this.note.textContent = "larger: fires more often";
  }

  at(event) {
    const box = this.frame.getBoundingClientRect();
    return [event.clientX - box.left - this.frame.clientLeft, event.clientY - box.top - this.frame.clientTop];
  }

  // The point nearest to a place, at most `reach` pixels away.
  near(px, py, reach = 9) {
    let best, least = reach * reach;
    const column = Math.floor(px / CELL), row = Math.floor(py / CELL);
    for (let dy = -1; dy <= 1; dy++) for (let dx = -1; dx <= 1; dx++) {
      for (const id of this.grid?.get((row + dy) * this.columns + column + dx) ?? []) {
        const [qx, qy] = this.toPixel(this.x[id], this.y[id]), far = (qx - px) ** 2 + (qy - py) ** 2;
        if (far <= least) { least = far; best = id; }
      }
    }
    return best;
  }

  down(event) {
    if (event.button !== 0 || !this.order) return;
    this.frame.setPointerCapture(event.pointerId);
    this.trail = [this.at(event)];
    this.dragged = this.view;
  }

  moved(event) {
    if (!this.order) return;
    const here = this.at(event);
    if (!this.trail) { this.show(this.near(...here)); return; }
    const [sx, sy] = this.trail[0];
    if (Math.hypot(here[0] - sx, here[1] - sy) < 4 && this.trail.length === 1) return;
    this.show(undefined);
    if (this.tool === "move") {
      const [[x0, x1], [y0, y1]] = this.dragged, [width, height] = this.inner;
      const mx = ((sx - here[0]) / width) * (x1 - x0), my = ((here[1] - sy) / height) * (y1 - y0);
      this.view = [[x0 + mx, x1 + mx], [y0 + my, y1 + my]];
    }
    if (this.tool === "lasso") this.trail.push(here); else this.trail[1] = here;
    this.overlay();
  }

  up(event) {
    const trail = this.trail;
    this.trail = undefined;
    if (!trail) return;
    if (trail.length < 2) { this.open(this.near(...this.at(event)), event); return; }
    if (this.tool === "move") return;
    const corners = this.corners(trail).map(([px, py]) => this.toValue(px, py));
    this.choose(corners);
  }

  cancel() { this.trail = undefined; this.overlay(); }

  left() { if (!this.trail) this.show(undefined); }

  corners(trail) {
    if (this.tool === "lasso") {
      const step = Math.ceil(trail.length / this.data.max_corners);
      return trail.filter((_, place) => place % step === 0);
    }
    const [[ax, ay], [bx, by]] = trail;
    return [[ax, ay], [bx, ay], [bx, by], [ax, by]];
  }

  choose(corners) {
    const text = corners.map(([x, y]) => `${Number(x.toPrecision(4))},${Number(y.toPrecision(4))}`).join("~");
    if (corners.length >= 3) follow(this.data.area_href.replace("AREA", encodeURIComponent(text)));
  }

  open(id, event) {
    if (id === undefined) return;
    const href = this.data.href.replace("PLACE", String(id));
    if (event.ctrlKey || event.metaKey) window.open(href, "_blank"); else follow(href);
  }

  wheel(event) {
    if (!this.order || !(event.ctrlKey || event.metaKey || this.frame.getRootNode().activeElement === this.frame)) return;
    event.preventDefault();
    this.zoom(Math.exp(event.deltaY / 400), ...this.at(event));
  }

  zoom(factor, px, py) {
    const [ranges, centre] = [this.view, this.toValue(px, py)];
    this.view = ranges.map(([low, high], i) => [centre[i] - (centre[i] - low) * factor, centre[i] + (high - centre[i]) * factor]);
  }

  // Arrow keys go to the nearest point in their direction, Enter opens it, plus and minus zoom about it.
  key(event) {
    if (!this.order?.length) return;
    const [width, height] = this.inner, middle = [PAD.left + width / 2, PAD.top + height / 2];
    const here = this.held === undefined ? middle : this.toPixel(this.x[this.held], this.y[this.held]);
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (way) this.show(this.next(here, way) ?? this.held);
    else if (event.key === "Enter" && this.held !== undefined) this.open(this.held, event);
    else if (event.key === "+" || event.key === "-") this.zoom(event.key === "+" ? 0.7 : 1.4, ...here);
    else if (event.key === "Escape") this.show(undefined);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  next([px, py], [dx, dy]) {
    let best, least = Infinity;
    for (const id of this.order) {
      if (id === this.held) continue;
      const [qx, qy] = this.toPixel(this.x[id], this.y[id]);
      const along = (qx - px) * dx + (qy - py) * dy, across = Math.abs((qx - px) * dy) + Math.abs((qy - py) * dx);
      const cost = along + 3 * across;
      if (along > 0.5 && cost < least && qx >= PAD.left && qy >= PAD.top) { least = cost; best = id; }
    }
    return best;
  }

  show(id) {
    if (id === this.held) return;
    this.held = id;
    this.overlay();
    this.tip.hidden = id === undefined;
    this.frame.style.cursor = id === undefined ? "crosshair" : "pointer";
    if (id === undefined) { this.said.textContent = ""; return; }
    const { x, y, colour } = this.data.axes, lines = [`latent ${id}`];
    if (this.data.labels[id]) lines.push(this.data.labels[id]);
    const named = new Set();
    [x, y, colour].forEach((axis, i) => {
      if (named.has(axis.column)) return;
      named.add(axis.column);
      const value = this.raw[i][id], sign = axis.floor !== null && value >= axis.floor - 1e-3 ? "≥ " : "";
      lines.push(`${axis.label} ${sign}${number(value)}`);
    });
    this.tip.replaceChildren(...lines.map((line) => element("div", "", line)));
    this.said.textContent = lines.join(", ");
    const [px, py] = this.toPixel(this.x[id], this.y[id]), [width, height] = [this.tip.offsetWidth, this.tip.offsetHeight];
    this.tip.style.left = `${px + 12 + width > this.frame.clientWidth ? Math.max(0, px - 12 - width) : px + 12}px`;
    this.tip.style.top = `${Math.max(0, py - 12 - height)}px`;
  }

  overlay() {
    const context = this.context(this.over), colour = getComputedStyle(this.note).color;
    if (this.trail?.length > 1 && this.tool !== "move") this.outline(context, this.corners(this.trail), colour);
    if (this.held === undefined) return;
    const [px, py] = this.toPixel(this.x[this.held], this.y[this.held]);
    context.strokeStyle = colour;
    context.lineWidth = 2;
    context.beginPath(); context.arc(px, py, this.size[this.held] + 3, 0, 7); context.stroke();
  }

  // Latents that are drawn and where they lie on the screen.
  places() {
    const box = this.frame.getBoundingClientRect();
    return [...this.grid.values()].flat().map((id) => {
      const [px, py] = this.toPixel(this.x[id], this.y[id]);
      return [id, box.left + this.frame.clientLeft + px, box.top + this.frame.clientTop + py];
    });
  }
}

// The ends of values, with a margin at both.
function range(values, ids, margin = 0.03) {
  let low = Infinity, high = -Infinity;
  for (const id of ids) { const v = values[id]; if (v < low) low = v; if (v > high) high = v; }
  if (!Number.isFinite(low)) return [0, 1];
  const wide = (high - low) * margin || (margin ? 0.5 : 0);
  return [low - wide, high + wide];
}

// Round values between two ends, about `count` of them.
function steps(low, high, count) {
  const rough = (high - low) / Math.max(2, count), ten = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * ten).find((s) => s >= rough), ticks = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

// The colour at a place between 0 and 1 of a ramp of #rrggbb.
function mixed(ramp, at) {
  const place = at * (ramp.length - 1), i = Math.min(ramp.length - 2, Math.floor(place)), share = place - i;
  const part = (colour, k) => parseInt(colour.slice(1 + 2 * k, 3 + 2 * k), 16);
  return `rgb(${[0, 1, 2].map((k) => Math.round(part(ramp[i], k) * (1 - share) + part(ramp[i + 1], k) * share))})`;
}

// Whether a point lies in a polygon (even-odd rule).
function within(x, y, corners) {
  let inside = false;
  for (let i = 0, j = corners.length - 1; i < corners.length; j = i++) {
    const [ax, ay] = corners[i], [bx, by] = corners[j];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) inside = !inside;
  }
  return inside;
}

export default function ({ data, parentElement }) {
  const root = parentElement.querySelector(".root");
  if (!views.has(root)) views.set(root, new ScatterView(root));
  views.get(root).update(data);
}
