// The slider over the spectrum: the histogram of one place in the model, at one step, drawn as SVG.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("spectra").textContent);
  const section = document.getElementById("explorer");
  const chart = document.getElementById("chart");
  const layer = document.getElementById("layer");
  const step = document.getElementById("step");
  const note = document.getElementById("reading");
  const height = 300, left = 44, right = 12, top = 12, bottom = 42;

  // Density: the same Gaussian kernel as in the pictures, mirrored at the ends.
  const smooth = (shares) => {
    const n = shares.length, width = 0.02 * n, reach = Math.ceil(4 * width);
    const kernel = Array.from({ length: 2 * reach + 1 }, (_, k) => Math.exp(-0.5 * ((k - reach) / width) ** 2));
    const total = kernel.reduce((a, b) => a + b);
    const at = (i) => shares[i < 0 ? -1 - i : i >= n ? 2 * n - 1 - i : i];
    return shares.map((_, i) => (n * kernel.reduce((sum, w, k) => sum + w * at(i + k - reach), 0)) / total);
  };
  const every = [...data.readings, ...(data.baseline ? [data.baseline] : [])];
  const peak = Math.max(...every.flatMap((r) => r.places).flatMap((p) => p.states).flatMap((s) => smooth(s.histogram)));

  const draw = () => {
    const reading = data.readings[Number(step.value)];
    const place = reading.places[Number(layer.value)];
    const width = Math.max(300, chart.clientWidth);
    const x = (v) => left + v * (width - left - right);
    const y = (d) => top + (1 - d / (1.05 * peak)) * (height - top - bottom);
    const curve = (state, kind) => {
      const points = smooth(state.histogram).map((d, i, all) => `${x((i + 0.5) / all.length).toFixed(1)},${y(d).toFixed(1)}`);
      return `<polyline class="${kind}" points="${points.join(" ")}"/>`;
    };
    const pairs = (shares) => shares.filter((_, i) => i % 2 === 0).map((share, i) => share + shares[2 * i + 1]);
    const bars = (state, kind) => pairs(state.histogram).map((share, i, all) => {
      const at = y(Math.min(share * all.length, 1.05 * peak));
      return `<rect class="${kind}" x="${x(i / all.length).toFixed(1)}" width="${(x(1 / all.length) - x(0)).toFixed(2)}"` +
        ` y="${at.toFixed(1)}" height="${(y(0) - at).toFixed(1)}"/>`;
    }).join("");
    const axis = [0, 0.25, 0.5, 0.75, 1].map((v) => `<text x="${x(v)}" y="${height - 24}" text-anchor="${v === 1 ? "end" : "middle"}">${v}</text>`);
    const unit = 10 ** Math.floor(Math.log10(peak)), mark = peak / unit > 4 ? 2 * unit : peak / unit > 2 ? unit : unit / 2;
    for (let d = 0; d <= peak; d += mark) {
      axis.push(`<line class="axis" x1="${left}" x2="${width - right}" y1="${y(d)}" y2="${y(d)}"/>` +
        `<text x="${left - 6}" y="${y(d) + 4}" text-anchor="end">${+d.toPrecision(3)}</text>`);
    }
    const states = place.states, last = states[states.length - 1];
    const parts = states.length === 2 ? [bars(states[0], "before"), curve(last, "curve")] : [bars(last, "bar"), curve(last, "curve")];
    const other = data.baseline && data.baseline.places.find((p) => p.name === place.name);
    if (other) parts.push(curve(other.states[other.states.length - 1], "other"));
    if (last.median_ratio !== null) parts.push(`<line class="median" x1="${x(last.median_ratio)}" x2="${x(last.median_ratio)}" y1="${top}" y2="${y(0)}"/>`);
    const value = (name, digits) => states.map((s) => (s[name] === null ? "not a number" : s[name].toFixed(digits))).join(" → ");
    const text = `${place.name}, after step ${reading.step}: median of σ/σ₁ ${value("median_ratio", 3)}, skewness ${value("skewness", 2)}, ` +
      `token uniformity ${value("token_uniformity", 3)}, effective rank ${value("effective_rank", 1)}.`;
    chart.innerHTML = `<svg viewBox="0 0 ${width} ${height}" height="${height}" role="img">${axis.join("")}${parts.join("")}` +
      `<text x="${(left + width - right) / 2}" y="${height - 5}" text-anchor="middle">σ / σ₁ (vertical: density)</text></svg>`;
    chart.firstChild.setAttribute("aria-label", `Distribution of singular values, ${text}`);
    note.textContent = text;
    layer.setAttribute("aria-valuetext", place.name);
    step.setAttribute("aria-valuetext", `step ${reading.step}`);
    document.getElementById("layer-name").textContent = place.name;
    document.getElementById("step-name").textContent = reading.step;
    for (const [kind, shown] of [["bar", states.length === 1], ["before", states.length === 2], ["other", Boolean(other)]]) {
      document.getElementById(`key-${kind}`).hidden = !shown;
    }
  };
  layer.max = data.readings[0].places.length - 1;
  layer.value = layer.max;
  step.max = data.readings.length - 1;
  step.value = step.max;
  for (const part of document.querySelectorAll(".step-part")) part.hidden = data.readings.length < 2;
  for (const input of [layer, step]) input.addEventListener("input", draw);
  new ResizeObserver(draw).observe(chart);
  section.hidden = false;
  draw();
})();
