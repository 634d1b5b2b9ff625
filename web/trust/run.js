// What is known of one run of Unlearn or Find Neurons. No DOM and no ComfyUI in here.

/** Begin with nothing. curves: {piece: [[step, effect, harm], ...]}; neurons: {weight: share}. */
export function emptyRun() {
  return { curves: {}, neurons: {}, steps: 1, stage: "", done: 0, total: 1, left: null, needs: "" };
}

/** Return a run with a message from the server worked in. */
export function withProgress(run, data) {
  const begun = data.done < run.done ? emptyRun() : run; // another run has begun in this node
  const curves = { ...begun.curves };
  for (const [piece, ...point] of data.points ?? []) {
    curves[piece] = [...(curves[piece] ?? []), point];
  }
  const { steps, stage, done, total, left, needs } = { ...begun, ...data };
  return { curves, neurons: data.neurons ?? begun.neurons, steps, stage, done, total, left, needs };
}

/** Return a run that Cancel or an error has ended: what it drew stays, no time is left. */
export function stopped(run) {
  if (!Number.isFinite(run.left) && !run.stage && !run.needs) return run; // it is over
  const begun = Object.keys(run.curves).length > 0;
  return begun ? { ...run, left: null, stage: "" } : { ...emptyRun(), neurons: run.neurons };
}

/** Return the run that a finished node tells of, as it also does when nothing had to be done. */
export function finishedRun(told) {
  return { ...emptyRun(), ...told, done: 1, total: 1, left: null, stage: "" };
}

/** Average the pieces' curves, step by step: [[step, effect, harm], ...]. */
export function meanCurve(curves) {
  const at = new Map();
  for (const points of Object.values(curves)) {
    for (const [step, effect, harm] of points) {
      const sum = at.get(step) ?? [0, 0, 0];
      at.set(step, [sum[0] + 1, sum[1] + effect, sum[2] + harm]);
    }
  }
  return [...at]
    .sort(([a], [b]) => a - b)
    .map(([step, [count, effect, harm]]) => [step, effect / count, harm / count]);
}

/** Arrange neurons by layer: {layers: [name, ...], cells: [[q, k, v], ...], most}. */
export function neuronGrid(neurons) {
  const layers = new Map();
  for (const [key, share] of Object.entries(neurons)) {
    const found = key.match(/^(.*)\.attn2\.to_([qkv])$/);
    if (!found) continue; // a weight elsewhere has no place in the map
    const row = layers.get(found[1]) ?? [null, null, null];
    row["qkv".indexOf(found[2])] = share;
    layers.set(found[1], row);
  }
  const cells = [...layers.values()];
  const most = Math.max(0, ...cells.flat().filter((share) => share !== null));
  return { layers: [...layers.keys()], cells, most };
}
