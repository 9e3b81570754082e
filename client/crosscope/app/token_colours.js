// The colours of the token view, and what a screen reader reads of each token. Knows no clicks.
const rounded = (value) => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2));
const figure = (value) => (value === 0 || value >= 0.1 ? rounded(value) : value.toPrecision(2));
// A piece that begins with a combining mark gets a circle for the mark to stand on.
const visible = (piece) => (/^\p{M}/u.test(piece) ? "\u25cc" : "") + [...piece].map((c) => MARKS[c] ?? c).join("")
  || "(rest of the character before)";

// What a token view is made of: `data`, `tokens` (the nodes of each strip), `hovered`, `colourBy`, `locked`, `range`.
class TokenColours {
  // Whether tokens are coloured by a figure of their own; a latent under the pointer goes before it.
  isMeasured() { return this.data.measure !== "" && this.hovered === undefined; }

  // [latent, value] of a token under the present colouring, or null; the latent is null for a figure of the token.
  entry(strip, position) {
    if (this.isMeasured()) {
      const value = strip.shades[position];
      return value === null || value === undefined ? null : [null, value];
    }
    const chosen = this.hovered === undefined ? this.colourBy : this.hovered;
    const start = strip.row_starts[position], end = strip.row_starts[position + 1];
    if (start === end) return null;
    if (chosen === null || chosen === undefined) return [strip.latents[start], strip.values[start]];
    const value = this.valueOf(strip, position, chosen);
    return value ? [chosen, value] : null;
  }

  paint() {
    const entries = this.data.strips.map((strip) => strip.pieces.map((_, position) => this.entry(strip, position)));
    // Latents fire so strongly on tokens that training left out that all others would stay without colour.
    const kept = (index) => entries[index].filter((_, position) => !(position in this.data.strips[index].left_out));
    const largest = (rows) => rows.reduce((max, entry) => Math.max(max, entry ? entry[1] : 0), 0);
    const measured = this.isMeasured();
    const given = this.data.measure === "" || measured ? this.data.scale_max : null;
    const overall = given ?? Math.max(0, ...entries.map((_, index) => largest(kept(index))));
    this.scaleStart.textContent = `${measured ? this.data.measure : "activation"} 0`;
    this.scaleEnd.textContent = this.eachScale ? "each text's largest" : figure(overall);
    this.scale.hidden = this.data.split.length > 0;
    entries.forEach((rows, index) => {
      const top = (this.eachScale ? largest(kept(index)) : overall) || 1;
      rows.forEach((entry, position) => this.paintToken(index, position, entry, top));
    });
    if (this.chosen) {
      const [, start, end] = this.range ?? [];
      this.chosen.textContent = this.range ? `tokens ${start} to ${end - 1} chosen; Escape releases them` : "";
    }
    for (const [latent, chip] of this.chips ?? []) {
      const chosen = this.data.measure === "" && latent === (this.colourBy ?? null);
      chip.setAttribute("aria-pressed", String(chosen));
    }
  }

  // The share of its full colour that each of two latents has on a token, and what a screen reader reads of both.
  paintHalves(node, strip, position) {
    const halves = this.data.split.map(([latent, top]) => {
      const value = this.valueOf(strip, position, latent);
      return [value ? Math.min(1, Math.max(0.08, value / (top || 1))) : 0, latent, value];
    });
    node.classList.toggle("split", halves.some(([share]) => share > 0));
    halves.forEach(([share], half) => node.style.setProperty(half ? "--w" : "--v", share.toFixed(3)));
    return halves.map(([, latent, value]) => `${value ? `activation ${rounded(value)}` : "silence"} of latent ${latent}`).join(", ");
  }

  // The activation of a latent on a token, 0 where it is silent.
  valueOf(strip, position, latent) {
    for (let i = strip.row_starts[position]; i < strip.row_starts[position + 1]; i++) {
      if (strip.latents[i] === latent) return strip.values[i];
    }
    return 0;
  }

  paintToken(index, position, entry, top) {
    const node = this.tokens[index][position];
    const strip = this.data.strips[index];
    const least = this.isMeasured() ? 0 : 0.08; // a latent that fires shows, however weakly
    const share = entry ? Math.min(1, Math.max(least, entry[1] / top)) : 0;
    const halves = this.data.split.length ? this.paintHalves(node, strip, position) : "";
    node.classList.toggle("on", halves ? node.classList.contains("split") : share >= 0.02);
    if (!halves) node.style.setProperty("--v", share.toFixed(3));
    const locked = this.locked !== null && this.locked[0] === index && this.locked[1] === position;
    node.classList.toggle("locked", locked);
    const inRange = Boolean(this.range) && this.range[0] === index && this.range[1] <= position && position < this.range[2];
    node.classList.toggle("ranged", inRange);
    node.setAttribute("aria-pressed", String(locked));
    const value = halves ? halves : entry === null ? (this.isMeasured() ? "not measured" : "not active")
      : entry[0] === null ? `${this.data.measure} ${figure(entry[1])}`
      : `activation ${rounded(entry[1])} of latent ${entry[0]}`;
    const note = strip.notes[position] ? `, ${strip.notes[position]}` : "";
    node.setAttribute("aria-label", `${visible(strip.pieces[position])}, token ${strip.token_start + position}, `
      + `${ROLES[strip.roles[position]]}${this.leftOut(strip, position, ", ")}, ${value}${note}`
      + (inRange ? ", in the chosen range" : ""));
  }

  leftOut(strip, position, before) {
    return position in strip.left_out
      ? `${before}left out of training and analysis: ${strip.left_out[position]}` : "";
  }
}
