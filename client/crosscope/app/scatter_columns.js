// Puts whole columns where the scatter plot finds them, once a version: a line of JSON, a line end, float32 values.
export default function ({ data }) {
  const bytes = data instanceof Uint8Array ? data : new Uint8Array(data), end = bytes.indexOf(10);
  const head = JSON.parse(new TextDecoder().decode(bytes.subarray(0, end)));
  const kept = (window.crosscopeColumns ??= new Map());
  const missing = head.columns.filter((name) => !kept.has(`${head.version} ${name}`));
  if (!missing.length) return;
  for (const key of [...kept.keys()]) if (!key.startsWith(`${head.version} `)) kept.delete(key);
  const values = bytes.slice(end + 1).buffer;
  head.columns.forEach((name, place) => {
    kept.set(`${head.version} ${name}`, new Float32Array(values, place * 4 * head.count, head.count));
  });
  window.dispatchEvent(new Event("crosscope-columns"));
}
