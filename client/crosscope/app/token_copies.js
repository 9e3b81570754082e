// Copies of a strip of tokens for other programs.

// What a strip holds; see token_view.py. A token that only continues a character has the empty piece.
function written(strip) {
  const activations = strip.pieces.flatMap((_, token) => {
    const rows = [];
    for (let i = strip.row_starts[token]; i < strip.row_starts[token + 1]; i++) {
      rows.push({ token, latent: strip.latents[i], activation: strip.values[i] });
    }
    return rows;
  });
  return {
    text: strip.pieces.join(""), tokens: strip.pieces, roles: strip.roles.map((role) => ROLES[role]),
    first_token: strip.token_start, num_tokens: strip.num_tokens, activations,
  };
}

// Whether a text is on the clipboard now. Browsers give the clipboard to pages of this machine and to https; elsewhere
// the older command does it.
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { /* not allowed here */ }
  const field = element("textarea");
  field.value = text;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  return done;
}

// A button that opens three: the strip as text, as tokens, and as JSON with its activations, to the clipboard.
function copies(strip) {
  const box = element("span", "copies"), choices = element("span", "choices");
  const shapes = {
    text: () => strip.pieces.join(""),
    tokens: () => JSON.stringify(strip.pieces),
    JSON: () => JSON.stringify(written(strip), null, 1),
  };
  const open = button("Copy", () => {
    choices.hidden = !choices.hidden;
    open.setAttribute("aria-expanded", String(!choices.hidden));
  });
  open.setAttribute("aria-expanded", "false");
  choices.hidden = true;
  choices.append(...Object.entries(shapes).map(([name, shape]) => {
    const node = button(name, async () => {
      node.textContent = (await copied(shape())) ? `${name} ✓` : `${name}: refused`;
    });
    node.setAttribute("aria-label", `Copy as ${name}`);
    return node;
  }));
  box.append(open, choices);
  return box;
}
