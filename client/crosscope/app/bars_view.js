// A histogram with a logarithmic height, as SVG. See bars_view.py for the data.
const views = new WeakMap();
const LEFT = 46, BOTTOM = 40, TOP = 8, RIGHT = 10;

function shape(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

class BarsView {
  constructor(root) {
    this.root = root;
    this.frame = element("div", "frame");
    this.tip = element("div", "tip");
    this.tip.hidden = true;
    this.tip.setAttribute("aria-hidden", "true");
    this.legend = element("div", "legend");
    root.replaceChildren(this.legend, this.frame, this.tip);
    new ResizeObserver(() => this.draw()).observe(this.frame);
    const pointed = ({ detail }) => {
      if (!root.isConnected) window.removeEventListener("crosscope-pointed", pointed);
      else this.mark(detail.latent === this.data?.latent ? detail.value : null);
    };
    window.addEventListener("crosscope-pointed", pointed);
  }

  update(data) {
    if (this.data?.revision === data.revision) return;
    this.data = data;
    this.legend.replaceChildren(...data.series.filter(({ name }) => name).map(({ name, colour }) => {
      const entry = element("span"), swatch = element("i");
      swatch.style.background = colour;
      entry.append(swatch, name);
      return entry;
    }));
    this.frame.style.height = `${data.height}px`;
    this.draw();
  }

  draw() {
    const width = this.frame.clientWidth, { height, series, ends, ticks } = this.data ?? {};
    if (!width || !this.data) return;
    const inner = width - LEFT - RIGHT, tall = height - TOP - BOTTOM;
    const most = Math.max(2, ...series.flatMap(({ bars }) => bars.map(([, , count]) => count)));
    const bottom = -0.2, top = Math.log10(most) + 0.1;
    const x = (value) => LEFT + ((value - ends[0]) / (ends[1] - ends[0])) * inner;
    const y = (count) => TOP + (1 - (Math.log10(count) - bottom) / (top - bottom)) * tall;
    const svg = shape("svg", { width, height, role: this.data.href ? "group" : "img", "aria-label": this.data.label });
    for (let power = 0; power <= top; power++) {
      const at = y(10 ** power);
      svg.append(shape("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: at, y2: at }));
      svg.append(shape("text", { x: LEFT - 6, y: at + 4, "text-anchor": "end" }, number(10 ** power)));
    }
    let free = -Infinity; // ticks that would lie on the one before have no text
    for (const [value, text] of ticks) {
      if (x(value) < free) continue;
      free = x(value) + 7 * text.length + 4;
      svg.append(shape("text", { x: x(value), y: TOP + tall + 16, "text-anchor": "middle" }, text));
    }
    svg.append(shape("text", { x: LEFT + inner / 2, y: TOP + tall + 34, "text-anchor": "middle" }, this.data.title));
    this.bars = series.flatMap((one) => one.bars.map((bar) => this.bar(one, bar, x, y, TOP + tall)));
    svg.append(...this.bars);
    this.frame.replaceChildren(svg);
    if (this.bars[0] && this.data.href) this.bars[0].setAttribute("tabindex", "0");
  }

  // A line at an activation that is pointed at elsewhere on the page; null takes it away.
  mark(value) {
    this.frame.querySelector(".marker")?.remove();
    const svg = this.frame.querySelector("svg"), width = this.frame.clientWidth;
    if (value === null || !svg || !width) return;
    const { ends, height } = this.data;
    const share = Math.max(0, Math.min(1, (value - ends[0]) / (ends[1] - ends[0])));
    const x = LEFT + share * (width - LEFT - RIGHT), group = shape("g", { class: "marker" });
    group.append(shape("line", { x1: x, x2: x, y1: TOP, y2: height - BOTTOM }));
    group.append(shape("text", { x: x + (share > 0.8 ? -4 : 4), y: TOP + 10, "text-anchor": share > 0.8 ? "end" : "start" }, number(value)));
    svg.append(group);
  }

  bar({ name, colour }, [low, high, count, place], x, y, floor) {
    const said = `${this.data.title} ${number(low)} to ${number(high)}: ${number(count)} ${this.data.counts}`;
    const full = name ? `${said}, ${name}` : said, href = this.data.href?.replace("PLACE", encodeURIComponent(place));
    const from = x(low) + 0.5, box = { x: from, width: Math.max(1, x(high) - from - 0.5) };
    const drawn = shape("rect", { class: "bar", ...box, y: y(count), height: floor - y(count), fill: colour });
    const node = shape(href ? "a" : "g", href ? { href, "aria-label": full, tabindex: -1 } : {});
    node.append(drawn, shape("rect", { class: "reach", ...box, y: TOP, height: floor - TOP }));
    const show = () => this.explain(drawn, full), hide = () => { this.tip.hidden = true; };
    for (const event of ["pointerenter", "focus"]) node.addEventListener(event, show);
    for (const event of ["pointerleave", "blur"]) node.addEventListener(event, hide);
    if (!href) return node;
    node.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      follow(href);
    });
    node.addEventListener("keydown", (event) => {
      const at = this.bars.indexOf(node), next = this.bars[{ ArrowRight: at + 1, ArrowLeft: at - 1 }[event.key]];
      if (!next) return;
      node.setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
      event.preventDefault();
    });
    return node;
  }

  explain(bar, text) {
    this.tip.textContent = text;
    this.tip.hidden = false;
    const box = this.root.getBoundingClientRect(), at = bar.getBoundingClientRect();
    this.tip.style.left = `${Math.max(0, Math.min(at.left - box.left, box.width - this.tip.offsetWidth))}px`;
    this.tip.style.top = `${Math.max(0, at.top - box.top - this.tip.offsetHeight - 4)}px`;
  }
}

export default function ({ data, parentElement }) {
  const root = parentElement.querySelector(".root");
  if (!views.has(root)) views.set(root, new BarsView(root));
  views.get(root).update(data);
}
