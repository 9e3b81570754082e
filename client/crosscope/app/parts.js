// What the app's components share. Text is set through textContent only.
function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function button(text, onClick) {
  const node = element("button", "", text);
  node.type = "button";
  node.addEventListener("click", onClick);
  return node;
}

// A figure for people, as crosscope._tables.number writes it: 3 digits, thin spaces between thousands, a true minus.
function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value === 0) return "0";
  const [mantissa, exponent] = Math.abs(value).toExponential(digits - 1).split("e");
  const power = Number(exponent), sign = value < 0 ? "−" : "";
  if (power < -4 || power > 14) return `${sign}${trimmed(mantissa)}e${power < 0 ? "−" : ""}${Math.abs(power)}`;
  if (power >= 3) return sign + String(Math.round(Math.abs(value))).replace(/\B(?=(\d{3})+$)/g, "\u202f");
  return sign + trimmed(Number(`${mantissa}e${power}`).toFixed(Math.max(0, digits - 1 - power)));
}

const trimmed = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
