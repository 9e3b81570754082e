// The token view: texts, clicks, keys and the tip. Pieces are set through textContent only. See token_view.py for the
// data, and for ROLES, TEMPLATE, KINDS and MARKS.
const SHOWN_LATENTS = 8;
const views = new WeakMap();

// Tells the histograms of the page which activation is pointed at; a latent of null: none.
const point = (latent, value) => window.dispatchEvent(new CustomEvent("crosscope-pointed", { detail: { latent, value } }));

class TokenView extends TokenColours {
  constructor(root) {
    super();
    this.root = root;
    this.eachScale = false;
    this.hovered = undefined;
  }

  update(data, send) {
    this.send = (kind, strip, position, end = -1) => send("event", { kind, strip, position, end });
    const rebuilt = this.data?.revision !== data.revision;
    if (rebuilt && this.data?.line_breaks !== data.line_breaks) this.breaks = data.line_breaks;
    this.data = data;
    this.colourBy = data.colour_by;
    this.locked = data.locked;
    this.range = data.range;
    if (rebuilt) this.rebuild();
    this.paint();
    this.heat?.draw();
  }

  // Builds again; the token that had the focus keeps it.
  rebuild() {
    const focused = this.root.getRootNode().activeElement;
    const strip = (this.tokens ?? []).findIndex((nodes) => nodes.includes(focused));
    const position = strip < 0 ? -1 : this.tokens[strip].indexOf(focused);
    this.build();
    this.tokens[strip]?.[position]?.focus({ preventScroll: true });
  }

  build() {
    this.root.replaceChildren();
    this.root.append(this.toolbar());
    if (this.data.legend.length) this.root.append(this.legend());
    this.strips = element("div", this.data.columns > 1 ? "strips side" : "strips");
    this.root.append(this.strips);
    this.tokens = this.data.strips.map((strip, index) => this.strip(strip, index));
    this.heat = this.data.heat.length
      ? new HeatMap(this.data.strips[0], this.data.heat, (latent) => this.send("latent", 0, latent)) : null;
    if (this.heat) this.root.append(this.heat.node);
    this.tip = element("div", "tip");
    this.tip.hidden = true;
    this.tip.setAttribute("aria-hidden", "true");
    this.root.append(this.tip);
  }

  toolbar() {
    const bar = element("div", "bar");
    const scale = this.scale = element("span", "scale");
    this.scaleEnd = element("span");
    this.scaleStart = element("span");
    scale.append(this.scaleStart, element("span", "ramp"), this.scaleEnd);
    bar.append(scale);
    this.data.split.forEach(([latent, top], half) => {
      const one = element("span", "scale");
      one.append(`latent ${latent}, ${half ? "lower" : "upper"} half: 0`, element("span", half ? "ramp other" : "ramp"), figure(top));
      bar.append(one);
    });
    if (this.data.strips.length > 1) {
      const each = button("scale each text", () => {
        this.eachScale = !this.eachScale;
        each.setAttribute("aria-pressed", String(this.eachScale));
        this.paint();
      });
      each.setAttribute("aria-pressed", String(this.eachScale));
      bar.append(each);
    }
    const breaks = button("line breaks", () => {
      this.breaks = !this.breaks;
      breaks.setAttribute("aria-pressed", String(this.breaks));
      this.root.classList.toggle("flat", !this.breaks);
    });
    breaks.setAttribute("aria-pressed", String(this.breaks));
    this.root.classList.toggle("flat", !this.breaks);
    bar.append(breaks);
    bar.append(element("span", "hidden", "Left and right arrows move by a token, up and down to the next active one, "
      + "Enter locks a token, Escape releases it."
      + (this.data.ranges ? " Shift with an arrow, or dragging, chooses several tokens." : "")));
    if (this.data.ranges) {
      this.chosen = element("span", "chosen");
      this.chosen.setAttribute("role", "status");
      bar.append(this.chosen);
    }
    return bar;
  }

  legend() {
    const box = element("div", "legend");
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", "Colour by latent");
    this.chips = [[null, "strongest"], ...this.data.legend].map(([latent, name]) => {
      const chip = button(name, () => this.send("latent", 0, latent ?? -1));
      const show = (value) => () => { this.hovered = value; this.paint(); };
      chip.addEventListener("pointerenter", show(latent));
      chip.addEventListener("pointerleave", show(undefined));
      chip.addEventListener("focus", show(latent));
      chip.addEventListener("blur", show(undefined));
      box.append(chip);
      return [latent, chip];
    });
    return box;
  }

  strip(strip, index) {
    const box = element("div", "strip");
    const whole = strip.num_tokens === strip.pieces.length;
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", strip.title || "Text");
    box.append(this.head(strip, index));
    const line = element("div", "tokens");
    line.setAttribute("role", "group");
    if (!whole && strip.token_start > 0) line.append(element("span", "edge", "… "));
    const nodes = strip.pieces.map((piece, position) => this.token(strip, index, piece, position));
    line.dir = "auto";
    line.append(...this.characters(nodes, strip));
    if (!whole && strip.token_start + strip.pieces.length < strip.num_tokens) line.append(element("span", "edge", " …"));
    box.append(line);
    this.strips.append(box);
    const first = nodes[strip.peak ?? 0];
    if (first) first.tabIndex = 0;
    line.addEventListener("keydown", (event) => this.key(event, index));
    if (this.data.ranges) this.drags(line, index, nodes);
    return nodes;
  }

  // The tokens, with those of one character in a frame of their own: its text stands on the first of them.
  characters(nodes, strip) {
    const groups = [];
    nodes.forEach((node, position) => {
      if (strip.pieces[position] === "" && position > 0) groups.at(-1).push(node);
      else groups.push([node]);
    });
    return groups.map((group) => {
      if (group.length === 1) return group[0];
      const frame = element("span", "character");
      frame.append(...group);
      return frame;
    });
  }

  drags(line, index, nodes) {
    let from = -1;
    const at = (event) => nodes.indexOf(event.target.closest?.(".token"));
    line.addEventListener("pointerdown", (event) => {
      if (event.button === 0 && event.pointerType !== "touch") from = at(event);
    });
    line.addEventListener("pointermove", (event) => {
      const to = at(event);
      if (from < 0 || to < 0 || (to === from && !this.isDragging)) return;
      this.isDragging = true;
      line.classList.add("dragging");
      this.reach(index, from, to);
    });
    const drop = (event) => {
      line.classList.remove("dragging");
      if (this.isDragging && event.type === "pointerup") this.sendRange();
      from = -1;
      setTimeout(() => { this.isDragging = false; }); // behind the click that ends a drag
    };
    line.addEventListener("pointerup", drop);
    line.addEventListener("pointerleave", drop);
    line.addEventListener("keyup", (event) => { if (event.key === "Shift" && this.isReaching) this.sendRange(); });
  }

  // Marks the tokens from one to another, both counted.
  reach(index, from, to) {
    this.range = [index, Math.min(from, to), Math.max(from, to) + 1];
    this.isReaching = true;
    this.paint();
  }

  sendRange() {
    this.isReaching = false;
    this.send("range", ...this.range);
  }

  head(strip, index) {
    const head = element("div", "head");
    if (strip.title) head.append(element("strong", "", strip.title));
    if (strip.note) head.append(element("span", "", strip.note));
    const actions = element("span", "actions");
    actions.append(copies(strip), ...strip.actions.map(([kind, says]) => button(says, () => this.send(kind, index, -1))));
    head.append(actions);
    return head;
  }

  token(strip, index, piece, position) {
    const node = element("span", "token", piece);
    if (TEMPLATE.includes(strip.roles[position])) node.classList.add("template");
    if (strip.roles[position] in KINDS) node.classList.add(KINDS[strip.roles[position]]);
    if (position in strip.left_out) node.classList.add("left-out");
    if (piece === "") node.classList.add("part");
    if (piece.includes("\n")) node.classList.add("break");
    else if (piece !== "" && piece.trim() === "") node.classList.add("blank");
    node.setAttribute("role", "button");
    node.tabIndex = -1;
    const show = () => this.show(index, position);
    const hide = () => {
      this.tip.hidden = true;
      point(null, 0);
    };
    node.addEventListener("pointerenter", show);
    node.addEventListener("pointerleave", hide);
    node.addEventListener("focus", show);
    node.addEventListener("blur", hide);
    node.addEventListener("click", () => this.toggle(index, position));
    return node;
  }

  toggle(index, position) {
    if (this.isDragging) return;
    const same = this.locked && this.locked[0] === index && this.locked[1] === position;
    this.locked = same ? null : [index, position];
    this.paint();
    this.send(same ? "unlock" : "lock", index, position);
  }

  key(event, index) {
    const nodes = this.tokens[index];
    const at = nodes.indexOf(event.target);
    if (at < 0) return;
    const active = (step) => {
      for (let i = at + step; i >= 0 && i < nodes.length; i += step) if (nodes[i].classList.contains("on")) return i;
      return at;
    };
    const moves = {
      ArrowRight: () => at + 1, ArrowLeft: () => at - 1, ArrowDown: () => active(1), ArrowUp: () => active(-1),
      Home: () => 0, End: () => nodes.length - 1,
    };
    if (event.key in moves) {
      const to = Math.max(0, Math.min(nodes.length - 1, moves[event.key]()));
      if (event.shiftKey && this.data.ranges) this.reach(index, this.anchor ??= at, to);
      else this.anchor = undefined;
      const next = nodes[Math.max(0, Math.min(nodes.length - 1, moves[event.key]()))];
      nodes[at].tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    } else if (event.key === "Enter" || event.key === " ") {
      this.toggle(index, at);
    } else if (event.key === "Escape" && this.range) {
      this.range = this.anchor = null;
      this.send("range", index, -1);
    } else if (event.key === "Escape" && this.locked) {
      this.toggle(...this.locked);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  show(index, position) {
    const strip = this.data.strips[index];
    const tip = this.tip;
    tip.replaceChildren(
      element("div", "", visible(strip.pieces[position])),
      element("div", "where", `token ${strip.token_start + position} · ${ROLES[strip.roles[position]]}`
        + this.leftOut(strip, position, " · ")));
    const start = strip.row_starts[position], end = strip.row_starts[position + 1];
    const chosen = this.entry(strip, position);
    if (chosen && chosen[0] !== null) point(chosen[0], chosen[1]);
    if (chosen && chosen[0] === null) {
      tip.append(element("div", "", `${this.data.measure} ${figure(chosen[1])}`));
    }
    if (strip.notes[position]) tip.append(element("div", "where", strip.notes[position]));
    for (let i = start; i < Math.min(end, start + SHOWN_LATENTS); i++) tip.append(this.tipRow(strip, i, chosen));
    if (end - start > SHOWN_LATENTS) tip.append(element("div", "where", `and ${end - start - SHOWN_LATENTS} more`));
    if (start === end && strip.latents.length) tip.append(element("div", "where", "not active"));
    tip.hidden = false;
    this.place(this.tokens[index][position]);
  }

  tipRow(strip, i, chosen) {
    const row = element("div", chosen && chosen[0] === strip.latents[i] ? "row chosen" : "row");
    row.append(element("span", "", `latent ${strip.latents[i]}`), element("span", "", rounded(strip.values[i])));
    return row;
  }

  place(node) {
    const box = this.root.getBoundingClientRect();
    const token = node.getClientRects()[0] ?? node.getBoundingClientRect();
    const tip = this.tip.getBoundingClientRect();
    const left = Math.max(0, Math.min(token.left - box.left, box.width - tip.width));
    const above = token.top - tip.height - 6 > 60 && token.bottom + tip.height + 6 > window.innerHeight;
    this.tip.style.left = `${left}px`;
    this.tip.style.top = `${(above ? token.top - tip.height - 6 : token.bottom + 6) - box.top}px`;
  }
}

export default function ({ data, parentElement, setTriggerValue }) {
  const root = parentElement.querySelector(".root");
  if (!views.has(root)) views.set(root, new TokenView(root));
  views.get(root).update(data, setTriggerValue);
}
