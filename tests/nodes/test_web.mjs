// Tests of web/trust, run by test_web.py, which hands in the folder as WEB.

import assert from "node:assert/strict";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

const load = (name) => import(pathToFileURL(`${process.env.WEB}/trust/${name}.js`));
const { escape, runPicture } = await load("draw");
const { auditLine, badge, diffLine } = await load("labels");
const { failure, refusals } = await load("errors");
const { emptyRun, finishedRun, meanCurve, neuronGrid, stopped, withProgress } = await load("run");
const { percent, text, useTexts } = await load("texts");

const Q = "middle_block.1.transformer_blocks.0.attn2.to_q";
const V = "middle_block.1.transformer_blocks.0.attn2.to_v";
const message = (done, points) => ({
  kind: "run", done, total: 10, steps: 4, left: 3, stage: "unlearning a", points,
  neurons: { [Q]: 0.01, [V]: 0.02 },
});

test("messages add up to curves", () => {
  let run = withProgress(emptyRun(), message(2, [["a", 0, 1, 0]]));
  run = withProgress(run, message(4, [["a", 1, 0.5, 0.1], ["b", 0, 0.8, 0]]));
  assert.deepEqual(run.curves, { a: [[0, 1, 0], [1, 0.5, 0.1]], b: [[0, 0.8, 0]] });
  assert.equal(run.left, 3);
});

test("another run in the same node begins anew", () => {
  const run = withProgress(emptyRun(), message(8, [["a", 0, 1, 0]]));
  assert.deepEqual(withProgress(run, message(1, [])).curves, {});
});

test("after Cancel nothing is left to wait for, and what was drawn stays", () => {
  const run = { ...withProgress(emptyRun(), message(4, [["a", 0, 1, 0]])), left: 120 };
  assert.match(runPicture(run), /2 min left/);
  assert.doesNotMatch(runPicture(stopped(run)), / left</);
  assert.deepEqual(stopped(run).curves, run.curves);
  const early = withProgress(emptyRun(), { ...message(1, []), stage: "recording", needs: "4 MB" });
  assert.match(runPicture(stopped(early)), /appears here/);
  assert.doesNotMatch(runPicture(stopped(early)), /recording|4 MB| left</);
  const over = finishedRun({ curves: {}, steps: 1, neurons: { [Q]: 1 } });
  assert.equal(stopped(over), over, "a node that was done before another failed");
});

const refused = (class_type, ...errors) => ({ 3: { class_type, errors, dependent_outputs: ["9"] } });
const custom = (input_name, said) => ({
  type: "custom_validation_failed", message: "Custom validation failed for node",
  details: `${input_name} - ${said}`, extra_info: { input_name },
});

test("a refused prompt is told once a node, in the node's own sentence", () => {
  const said = "there is no concept: write a word or phrase into `words`";
  const errors = refused("TrustConcept", custom("words", said), custom("kind", said));
  assert.deepEqual(refusals(errors, () => "TRUST Concept"), [`TRUST Concept: ${said}`]);
  assert.deepEqual(refusals(errors, () => undefined), [`TrustConcept: ${said}`]);
  const range = { type: "value_bigger_than_max", message: "Value 2 bigger than max of 1", details: "budget" };
  assert.deepEqual(refusals(refused("TrustUnlearn", range), () => "U"),
    ["U: Value 2 bigger than max of 1: budget"]);
  assert.deepEqual(refusals(refused("KSampler", range), () => "K"), [], "another's node");
  for (const nothing of [undefined, null, {}, { 3: { class_type: "TrustConcept" } }]) {
    assert.deepEqual(refusals(nothing, () => "T"), []);
  }
});

test("a failed node is told by its sentence, if it is ours", () => {
  const told = { node_id: "3", node_type: "TrustUnlearn", exception_type: "TRUST.ModelError",
    exception_message: "this model is quantised\n" };
  assert.equal(failure(told, () => "Mine"), "Mine: this model is quantised");
  assert.equal(failure({ ...told, node_type: "KSampler" }, () => "K"), null);
  assert.equal(failure({ ...told, exception_type: "RuntimeError" }, () => "U"), null);
});

test("what was known is not changed", () => {
  const run = emptyRun();
  withProgress(run, message(2, [["a", 0, 1, 0]]));
  assert.deepEqual(run, emptyRun());
});

test("the mean is over the pieces that got so far", () => {
  const curves = { a: [[0, 1, 0], [1, 0.5, 0.2]], b: [[0, 0, 0.2]] };
  assert.deepEqual(meanCurve(curves), [[0, 0.5, 0.1], [1, 0.5, 0.2]]);
});

test("neurons are arranged by layer, and what has no place is left out", () => {
  const grid = neuronGrid({ [Q]: 0.01, [V]: 0.02, "out.2": 0.5 });
  assert.deepEqual(grid.layers, ["middle_block.1.transformer_blocks.0"]);
  assert.deepEqual(grid.cells, [[0.01, null, 0.02]]);
  assert.equal(grid.most, 0.02);
});

test("a run is drawn: two bold lines, one faint line a piece, a cell a weight", () => {
  const svg = runPicture(withProgress(emptyRun(), message(4, [["a", 0, 1, 0], ["a", 1, 0.4, 0.1]])));
  assert.equal(svg.match(/<polyline/g).length, 3);
  assert.equal(svg.match(/<rect/g).length, 2);
  assert.match(svg, /3 s left/);
  const run = withProgress(emptyRun(), message(4, [["a", 0, 1, 0]]));
  assert.match(runPicture({ ...run, left: 600 }), /10 min left/);
  assert.doesNotMatch(runPicture({ ...run, left: null }), / left</);
  assert.match(svg, /0\.attn2|middle_block/);
});

test("nothing yet is said, and figures that are not finite do no harm", () => {
  assert.match(runPicture(emptyRun()), /appears here/);
  assert.match(runPicture({ ...emptyRun(), done: 5, total: 10, stage: "recording" }), /recording 50 %/);
  assert.doesNotMatch(runPicture(finishedRun({ curves: {}, steps: 1, neurons: { [Q]: 1 } })), /100 %</);
  const wild = finishedRun({ curves: { a: [[0, 1, 0], [1, NaN, 0]] }, neurons: {}, steps: 2 });
  assert.doesNotMatch(runPicture(wild), /NaN/);
});

test("before the first curve it says what the run takes, and how long", () => {
  const needs = "716 units of work, about 4 MB of recorded states";
  const begun = withProgress(finishedRun({ curves: { a: [[0, 1, 0]] }, neurons: { [Q]: 1 }, steps: 1 }),
    { kind: "run", done: 0, total: 10, steps: 4, stage: "", left: 30, points: [], neurons: {}, needs });
  assert.match(runPicture(begun), new RegExp(`>0 %<.*30 s left.*${needs}`));
  const later = withProgress(begun, { ...message(2, []), stage: "recording", neurons: {} });
  assert.match(runPicture(later), new RegExp(`recording 20 %.*3 s left.*${needs}`));
});

test("text from files cannot become markup", () => {
  assert.equal(escape(`<img src="x" onerror='y'>&`), "&lt;img src=&quot;x&quot; onerror=&#39;y&#39;&gt;&amp;");
  const evil = runPicture(finishedRun({ curves: {}, steps: 1, neurons: { [`<script>.attn2.to_q`]: 1 } }));
  assert.doesNotMatch(evil, /<script>/);
});

test("an audit says how far it is", () => {
  assert.equal(auditLine({ stage: "drawing", done: 1, total: 4 }), "drawing 25 %");
  assert.equal(auditLine({ stage: "core", done: 1, total: 4, left: 9 }), "core 25 % · 9 s left");
  const begun = { stage: "", done: 0, total: 900, left: 600, needs: "900 UNet passes" };
  assert.equal(auditLine(begun), "0 % · 10 min left · 900 UNet passes");
});

test("badge says what is gone, kept and brought back", () => {
  const audit = {
    ua: { value: 0.96 }, ira: { value: 0.9 }, standing: "good",
    attacks: { title: "relearning", asr: 0.125 },
  };
  assert.deepEqual(badge(audit), {
    text: "gone in 96 % of pictures · others seen in 90 % · brought back in 13 % by relearning",
    kind: "good",
  });
  assert.equal(badge({ ua: { value: null }, attacks: null }).kind, "mixed");
});

test("label says concept, family and audit", () => {
  assert.equal(diffLine({ concepts: ["gun"], family: "demo", audited: false }), "forgets gun · demo · not audited");
  assert.equal(
    diffLine({ concepts: [], family: null, audited: true, gone: 0.5 }),
    "concept not said · ? · audited: gone in 50 % of pictures",
  );
  assert.equal(diffLine({ error: "not a diff" }), "not a diff");
});

test("texts change with the language, and what it lacks stays English", () => {
  useTexts({ unaudited: "nicht geprüft" });
  assert.equal(text("unaudited"), "nicht geprüft");
  assert.equal(text("left", { seconds: 5 }), "5 s left");
  useTexts(undefined);
  assert.equal(text("unaudited"), "not audited");
  assert.equal(percent(undefined), "–");
});
