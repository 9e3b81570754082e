// Latents × tokens of one strip, drawn on a canvas. The arrow keys move a cell marker, whose value stands below as text.
const CELL = { width: 16, height: 18, least: 4 };

class HeatMap {
  // strip: as in TokenView; latents: ids, a row each; onPick(latent): Enter on a row.
  constructor(strip, latents, onPick) {
    Object.assign(this, { strip, latents, onPick, row: 0, column: 0 });
    this.num = strip.pieces.length;
    this.width = Math.max(CELL.least, Math.min(CELL.width, Math.floor(16000 / this.num)));
    this.values = latents.map((latent) => strip.pieces.map((_, position) => {
      for (let i = strip.row_starts[position]; i < strip.row_starts[position + 1]; i++) {
        if (strip.latents[i] === latent) return strip.values[i];
      }
      return 0;
    }));
    this.node = element("section", "heat");
    this.node.setAttribute("aria-label", "Latents by tokens");
    this.said = element("div", "said");
    this.said.setAttribute("role", "status");
    this.said.textContent = "Point at a cell, or move with the arrow keys, for its value; Enter colours the text by its latent.";
    const names = element("div", "names");
    names.setAttribute("aria-hidden", "true");
    names.append(...latents.map((latent) => element("span", "", String(latent))));
    this.canvas = element("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-label", `${latents.length} latents by ${this.num} tokens; arrow keys move, Enter colours by a latent`);
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("pointermove", (event) => this.point(event));
    this.canvas.addEventListener("click", (event) => { this.point(event); this.onPick(this.latents[this.row]); });
    const scroll = element("div", "scroll");
    scroll.append(this.canvas);
    const grid = element("div", "grid");
    grid.append(names, scroll);
    this.node.append(grid, this.said);
  }

  draw() {
    const style = getComputedStyle(this.node);
    const [heat, text, border] = ["--heat", "--text", "--border"].map((name) => this.colour(style, name));
    const ratio = window.devicePixelRatio > 1 && this.num * this.width < 8000 ? 2 : 1;
    const width = this.num * this.width, height = this.latents.length * CELL.height;
    Object.assign(this.canvas, { width: width * ratio, height: height * ratio });
    Object.assign(this.canvas.style, { width: `${width}px`, height: `${height}px` });
    const pen = this.canvas.getContext("2d");
    pen.scale(ratio, ratio);
    this.values.forEach((row, r) => {
      const kept = row.filter((_, c) => !(c in this.strip.left_out));
      const top = Math.max(0, ...kept) || Math.max(0, ...row) || 1;
      row.forEach((value, c) => {
        if (value <= 0) return;
        pen.globalAlpha = Math.max(0.12, Math.min(1, value / top));
        pen.fillStyle = heat;
        pen.fillRect(c * this.width, r * CELL.height, this.width - (this.width > 6 ? 1 : 0), CELL.height - 2);
      });
      pen.globalAlpha = 1;
      pen.fillStyle = border;
      pen.fillRect(0, (r + 1) * CELL.height - 1, width, 1);
    });
    pen.strokeStyle = text;
    pen.lineWidth = 1.5;
    pen.strokeRect(this.column * this.width + 0.5, this.row * CELL.height + 0.5, this.width - 1, CELL.height - 2);
  }

  // A colour of the style sheet that a canvas understands: variables hold light-dark().
  colour(style, name) {
    const probe = element("span", `probe${name}`);
    this.node.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  }

  say() {
    const value = this.values[this.row][this.column], { strip } = this;
    const left = this.column in strip.left_out ? ", left out of training" : "";
    this.said.textContent = `latent ${this.latents[this.row]}, token ${this.column} ${visible(strip.pieces[this.column])}${left}: `
      + (value ? rounded(value) : "not active");
    this.draw();
  }

  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / this.width), row = Math.floor((event.clientY - box.top) / CELL.height);
    if (row < 0 || row >= this.latents.length || column < 0 || column >= this.num) return;
    Object.assign(this, { row, column });
    this.say();
  }

  key(event) {
    const moves = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
    const clamp = (value, most) => Math.max(0, Math.min(most, value));
    if (event.key in moves) {
      this.row = clamp(this.row + moves[event.key][0], this.latents.length - 1);
      this.column = clamp(this.column + moves[event.key][1], this.num - 1);
      this.say();
      this.canvas.parentElement.scrollLeft = (this.column + 0.5) * this.width - this.canvas.parentElement.clientWidth / 2;
    } else if (event.key === "Enter") this.onPick(this.latents[this.row]);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

