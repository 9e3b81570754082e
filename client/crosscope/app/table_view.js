// A table whose rows and heads are links. Cells are set through textContent only. See table_view.py for the data.
const views = new WeakMap();

function link(text, href) {
  const node = element("a", "", text);
  node.href = href;
  node.addEventListener("click", (event) => {
    event.stopPropagation();
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    follow(href);
  });
  return node;
}

const BOLD = /\*\*(.+?)\*\*/g;

// A latent's name: the peak, between two pairs of asterisks, is bold.
const withBold = (text) => text.split(BOLD).map((part, place) => (place % 2 ? element("b", "", part) : part));

const linksOf = (rows) => rows.flatMap((row) => [...row.querySelectorAll("a")]);

class TableView {
  constructor(root) { this.root = root; }

  update(data) {
    if (this.data?.revision !== data.revision) this.build(data);
    this.data = data;
    this.rows.forEach((row, index) => {
      if (index === data.chosen) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    });
  }

  build(data) {
    const held = this.root.getRootNode().activeElement;
    const head = this.heads?.indexOf(held) ?? -1, row = this.rows ? this.anchors().indexOf(held) : -1;
    const scrolled = this.root.querySelector(".scroll")?.scrollTop ?? 0;
    const scroll = element("div", "scroll");
    scroll.style.maxHeight = `${data.max_height}px`;
    const table = element("table");
    table.setAttribute("aria-label", data.label);
    this.tip = element("div", "tip");
    this.tip.hidden = true;
    this.tip.setAttribute("aria-hidden", "true");
    table.append(this.head(data), this.body(data));
    if (!linksOf(this.rows).length) scroll.tabIndex = 0; // so that the arrow keys scroll what has no link
    scroll.append(table);
    scroll.addEventListener("scroll", () => {
      if (!this.tip.hidden && this.explained.matches(":hover, :focus-within")) this.explain(this.explained, this.tip.textContent);
      else this.tip.hidden = true;
    });
    this.root.replaceChildren(scroll, this.tip);
    scroll.scrollTop = scrolled;
    this.hold(head >= 0 ? this.heads[head] : row < 0 ? undefined : this.anchors().find((a) => a.href === held.href));
  }

  // Keeps the focus where it was when the table is drawn again.
  hold(node) {
    if (!node) return;
    if (!this.heads.includes(node)) {
      for (const anchor of linksOf(this.rows)) anchor.tabIndex = anchor === node ? 0 : -1;
    }
    node.focus({ preventScroll: true });
  }

  head(data) {
    const head = element("thead"), line = element("tr");
    line.style.height = `${data.row_height}px`;
    this.heads = [];
    for (const column of data.columns) {
      const cell = element("th", column.text ? "text" : "");
      cell.scope = "col";
      if (column.gauges.length) {
        const grid = element("div", column.wide ? "gauges wide" : "gauges");
        for (const gauge of column.gauges) {
          const part = element("span", "gauge");
          this.name(part, gauge, part);
          grid.append(part);
        }
        cell.append(grid);
        const ordered = column.gauges.find((gauge) => gauge.ordered)?.ordered;
        if (ordered) cell.setAttribute("aria-sort", ordered);
      } else {
        if (column.ordered) cell.setAttribute("aria-sort", column.ordered);
        this.name(cell, column, cell);
      }
      line.append(cell);
    }
    head.append(line);
    return head;
  }

  // A head's text or link, with its help.
  name(cell, column, near) {
    const mark = { ascending: " ↑", descending: " ↓" }[column.ordered] ?? "";
    const inner = column.order ? link(column.head + mark, column.order) : element("span", "", column.head + mark);
    if (column.help && column.order) inner.setAttribute("aria-description", column.help);
    else if (column.help) cell.title = column.help;
    const hide = () => { this.tip.hidden = true; };
    near.addEventListener("pointerenter", () => this.explain(near, column.help));
    near.addEventListener("pointerleave", hide);
    inner.addEventListener("focus", () => this.explain(near, column.help));
    inner.addEventListener("blur", hide);
    cell.append(inner);
    this.heads.push(inner);
  }

  // Bars with whiskers and their figures; a screen reader reads the words instead.
  gauges(cell, column, words, index) {
    const grid = element("div", column.wide ? "gauges wide" : "gauges");
    grid.setAttribute("aria-hidden", "true");
    cell.title = words;
    for (const { cells, bars, whiskers, limit } of column.gauges) {
      const gauge = element("span", "gauge"), track = element("span", "track");
      const place = (name, from, to) => {
        const part = element("i", name);
        part.style.left = `${100 * from}%`;
        if (to !== undefined) part.style.width = `${100 * (to - from)}%`;
        track.append(part);
      };
      if (bars[index] !== null) place("bar", 0, bars[index]);
      if (whiskers[index]) place("whisker", ...whiskers[index]);
      if (limit !== null) place("limit", limit);
      gauge.append(element("b", "", cells[index]), track);
      grid.append(gauge);
    }
    cell.append(element("span", "words", words), grid);
  }

  body(data) {
    const body = element("tbody");
    this.rows = data.rows.map((cells, index) => {
      const row = element("tr");
      row.style.height = `${data.row_height}px`;
      cells.forEach((text, place) => {
        const column = data.columns[place];
        const cell = element("td", column.narrow ? "text narrow" : column.brief ? "text brief" : column.text ? "text" : "");
        if (column.text) cell.title = column.narrow ? text.replaceAll(BOLD, "$1") : text;
        const own = data.columns[place].links[index] ?? (place === 0 ? data.links[index] : undefined);
        if (data.columns[place].gauges.length) this.gauges(cell, data.columns[place], text, index);
        else if (own) cell.append(link(text, own));
        else if (column.narrow) cell.append(...withBold(text));
        else cell.textContent = text;
        row.append(cell);
      });
      if (data.links.length) this.linked(row, data.links[index]);
      return row;
    });
    for (const anchor of linksOf(this.rows)) anchor.tabIndex = -1;
    const first = this.anchors()[data.chosen ?? 0] ?? this.anchors()[0];
    if (first) first.tabIndex = 0;
    body.append(...this.rows);
    body.addEventListener("keydown", (event) => this.key(event));
    return body;
  }

  linked(row, href) {
    row.classList.add("linked");
    row.addEventListener("click", (event) => {
      if (window.getSelection()?.toString()) return;
      if (event.ctrlKey || event.metaKey) window.open(href, "_blank");
      else follow(href);
    });
  }

  anchors() { return this.rows.map((row) => row.querySelector("a")).filter(Boolean); }

  // The rows are one stop of the Tab key; up and down move among them, left and right among the links of a row. Enter
  // follows the link as everywhere.
  key(event) {
    const anchors = this.anchors(), at = this.rows.indexOf(event.target.closest("tr"));
    const own = [...(this.rows[at]?.querySelectorAll("a") ?? [])], place = own.indexOf(event.target);
    const rows = {
      ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + 10, PageUp: at - 10, Home: 0, End: anchors.length - 1,
    };
    const cells = { ArrowRight: place + 1, ArrowLeft: place - 1 };
    if (place < 0 || !(event.key in rows || event.key in cells)) return;
    const among = event.key in rows ? anchors : own;
    const next = among[Math.max(0, Math.min(among.length - 1, rows[event.key] ?? cells[event.key]))];
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
    event.preventDefault();
    event.stopPropagation();
  }

  explain(cell, help) {
    if (!help) return;
    this.explained = cell;
    this.tip.textContent = help;
    this.tip.hidden = false;
    const box = this.root.getBoundingClientRect(), at = cell.getBoundingClientRect();
    this.tip.style.left = `${Math.max(0, Math.min(at.left - box.left, box.width - this.tip.offsetWidth))}px`;
    this.tip.style.top = `${at.bottom - box.top + 4}px`;
  }
}

export default function ({ data, parentElement }) {
  const root = parentElement.querySelector(".root");
  if (!views.has(root)) views.set(root, new TableView(root));
  views.get(root).update(data);
}
