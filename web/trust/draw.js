// Pictures as SVG text: colours follow the theme, numbers and names are all that goes in.

import { meanCurve, neuronGrid } from "./run.js";
import { percent, text, timeLeft } from "./texts.js";

const WIDTH = 400;
const CHART = 118;
const MAP = 34;
const LEFT = 30;
const EFFECT = "#e0566b";
const HARM = "#35a37c";
const INK = "var(--descrip-text, #999)";

/** Make a text safe inside SVG or HTML. */
export function escape(value) {
  const names = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  return String(value).replace(/[&<>"']/g, (sign) => names[sign]);
}

/** Draw a run: effect and harm against the step above the map of its neurons. */
export function runPicture(run) {
  const rows = Object.keys(run.curves).length ? chart(run) : waiting(run);
  const parts = [rows, neuronMap(run.neurons)].filter(Boolean);
  const height = CHART + (parts.length > 1 ? MAP : 0);
  const map = parts.length > 1 ? `<g transform="translate(0 ${CHART})">${parts[1]}</g>` : "";
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" width="100%" ` +
    `height="100%" font-family="sans-serif" font-size="10">${parts[0]}${map}</svg>`
  );
}

function waiting(run) {
  if (run.done >= run.total && Object.keys(run.neurons).length) return label(0, 0, "", "start");
  const share = Math.min(1, run.done / Math.max(1, run.total));
  const began = run.done || run.needs;
  const said = began ? `${run.stage} ${percent(share)}`.trim() : text("waiting");
  const rest = [timeLeft(run.left), run.needs].map((told, i) =>
    label(WIDTH / 2, CHART / 2 + 14 * (i + 1), told ?? "", "middle", 8),
  );
  return [label(WIDTH / 2, CHART / 2, said, "middle"), ...rest].join("");
}

function chart(run) {
  const mean = meanCurve(run.curves);
  const values = mean.flatMap(([, effect, harm]) => [effect, harm]).filter(Number.isFinite);
  const highest = Math.max(1, ...values);
  const last = Math.max(1, run.steps - 1);
  const x = (step) => round(LEFT + ((WIDTH - LEFT - 8) * Math.min(step, last)) / last);
  const y = (value) => round(CHART - 26 - ((CHART - 40) * clamp(value, 0, highest)) / highest);
  const grid = [0, 0.5, 1].map(
    (value) =>
      `<line x1="${LEFT}" x2="${WIDTH - 8}" y1="${y(value)}" y2="${y(value)}" stroke="${INK}" ` +
      `stroke-opacity="0.3"/>${label(LEFT - 5, y(value) + 3, percent(value), "end", 8)}`,
  );
  const faint = Object.values(run.curves).map((points) =>
    line(points.map(([step, effect]) => [x(step), y(effect)]), EFFECT, 0.8, 0.25),
  );
  const harm = line(mean.map(([step, , value]) => [x(step), y(value)]), HARM, 2);
  const effect = line(mean.map(([step, value]) => [x(step), y(value)]), EFFECT, 2.5);
  const key =
    label(LEFT, CHART - 8, `● ${text("effect")}`, "start", 10, EFFECT) +
    label(LEFT + 165, CHART - 8, `● ${text("harm")}`, "start", 10, HARM) +
    label(WIDTH - 8, CHART - 8, timeLeft(run.left), "end");
  return [...grid, ...faint, harm, effect, key].join("");
}

function neuronMap(neurons) {
  const { layers, cells, most } = neuronGrid(neurons);
  if (!layers.length) return "";
  const wide = (WIDTH - LEFT - 8) / layers.length;
  const drawn = cells.flatMap((row, i) =>
    row.map((share, j) => {
      if (share === null) return "";
      const told = escape(`${layers[i]} ${"qkv"[j]}: ${(share * 100).toFixed(2)} %`);
      const strong = round(0.08 + 0.92 * (most ? share / most : 0));
      return (
        `<rect x="${round(LEFT + i * wide)}" y="${j * 9}" width="${round(wide - 1)}" height="8" ` +
        `fill="${EFFECT}" fill-opacity="${strong}"><title>${told}</title></rect>`
      );
    }),
  );
  const names = [..."qkv"].map((name, j) => label(LEFT - 5, 7 + j * 9, name, "end", 8));
  return `<g><title>${escape(text("neurons"))}</title>${[...drawn, ...names].join("")}</g>`;
}

function label(x, y, said, anchor, size = 10, ink = INK) {
  return (
    `<text x="${round(x)}" y="${round(y)}" text-anchor="${anchor}" font-size="${size}" ` +
    `fill="${ink}">${escape(said)}</text>`
  );
}

function line(points, ink, width, opacity = 1) {
  const path = points.map(([x, y]) => `${x},${y}`).join(" ");
  return (
    `<polyline points="${path}" fill="none" stroke="${ink}" stroke-width="${width}" ` +
    `stroke-opacity="${opacity}"/>`
  );
}

function clamp(value, low, high) {
  return Math.min(high, Math.max(low, Number.isFinite(value) ? value : high));
}

function round(value) {
  return Math.round(value * 100) / 100;
}
