// Tests of web/trust_unlearn.js on a pretended front end, run by test_web.py.

import assert from "node:assert/strict";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

const KINDS = [
  "TrustUnlearn", "TrustFindNeurons", "TrustAudit", "TrustLoadDiff", "TrustApplyDiff",
  "TrustMergeDiffs", "TrustSaveDiff", "TrustExportLora", "TrustPrompts", "TrustConcept",
  "KSampler",
];
const RUN = { node: "7", kind: "run", done: 1, total: 9, steps: 3, points: [["a", 0, 1, 0]] };
const AUDIT = { node: "7", kind: "audit", stage: "drawing", done: 1, total: 4 };
const FINISHED = { node: "7", kind: "finished", concept: "gun", seconds: 12 };

const answers = {
  "/trust/label": { concepts: ["gun"], family: "demo", audited: false, label: "the label" },
  "/trust/run": { run: { curves: { a: [[0, 1, 0], [1, 0.5, 0]] }, steps: 2, neurons: {} } },
};
const posted = [];
let queued = () => ({ node_errors: {} });
const warned = [];
console.warn = (...said) => warned.push(said.map(String).join(" "));
const heard = {}; // event -> who listens
const say = (detail) => heard["trust.progress"]({ detail });
let extension, node;
const app = {
  graph: { getNodeById: () => node, get _nodes() { return [node]; } },
  registerExtension: (registered) => (extension = registered),
};
const api = {
  addEventListener: (name, listener) => (heard[name] = listener),
  fetchApi: async (path, options) => {
    if (options?.method === "POST") posted.push([path, options.body]);
    return {
      ok: !path.startsWith("/i18n"), // an old server has no texts
      json: async () => answers[path.split("?")[0]],
    };
  },
  queuePrompt: async () => queued(),
};
globalThis.frontEnd = { api, app };
await import(pathToFileURL(`${process.env.WEB}/trust_unlearn.js`));
await extension.setup();

/** Make a node as a current front end does: it takes DOM widgets. */
function current(comfyClass) {
  const shown = [];
  const addDOMWidget = (_name, _type, element, options) => {
    shown.push({ element, options });
    return {};
  };
  return { comfyClass, shown, widgets: [{ name: "diff_name", value: "a" }], addDOMWidget };
}

class Element {
  style = {};
  dataset = {};
  get firstChild() {
    return this.children?.[0];
  }
  replaceChildren(...children) {
    this.children = children;
  }
}
globalThis.document = { createElement: () => new Element() };

test("an old front end shows the nodes without our parts, and no mistake", () => {
  for (const comfyClass of KINDS) {
    node = { comfyClass, widgets: [{ name: "diff_name", value: "a" }] };
    extension.nodeCreated(node);
    for (const told of [RUN, AUDIT, FINISHED]) say(told);
    // After a save combos are asked for anew, whatever can be shown.
    if (comfyClass !== "TrustSaveDiff") assert.equal(node.onExecuted, undefined);
  }
  assert.deepEqual(warned, []);
});

test("the chart follows the messages, and what is finished stays", () => {
  node = current("TrustUnlearn");
  extension.nodeCreated(node);
  const [{ element, options }] = node.shown;
  assert.equal(options.serialize, false, "a picture is no value of the workflow");
  assert.match(element.innerHTML, /appears here/);
  say(RUN);
  assert.match(element.innerHTML, /polyline/);
  node.onExecuted({ trust_run: [JSON.stringify({ curves: {}, steps: 3, neurons: {} })] });
  assert.doesNotMatch(element.innerHTML, /polyline/);
});

test("a node that the host answers from its cache shows its chart again", async () => {
  node = current("TrustUnlearn");
  extension.nodeCreated(node);
  const [{ element }] = node.shown;
  await heard.execution_cached({ detail: { nodes: ["7"], prompt_id: "p" } });
  assert.match(element.innerHTML, /polyline/);
  answers["/trust/run"] = { run: null }; // long ago: what is shown stays
  await heard.execution_cached({ detail: { nodes: ["7"], prompt_id: "p" } });
  assert.match(element.innerHTML, /polyline/);
  node = current("KSampler");
  await heard.execution_cached({ detail: { nodes: ["7"], prompt_id: "p" } });
  assert.deepEqual(warned, []);
});

test("an audit says how far it is, then its verdict by colour and on hover", () => {
  node = current("TrustAudit");
  extension.nodeCreated(node);
  say(AUDIT);
  assert.equal(node.shown[0].element.children[0].textContent, "drawing 25 %");
  const told = { ua: { value: 1 }, ira: { value: 0.9 }, standing: "good", verdict: "It is gone." };
  node.onExecuted({ trust_audit: [JSON.stringify(told)] });
  const [line] = node.shown[0].element.children;
  assert.match(line.textContent, /gone in 100 %/);
  assert.equal(line.title, "It is gone.");
  assert.match(line.style.cssText, /#2f8f6b/);
});

test("a chosen diff is described, the whole label on hover", async () => {
  node = current("TrustLoadDiff");
  extension.nodeCreated(node);
  await new Promise((done) => setTimeout(done, 10));
  const [line] = node.shown[0].element.children;
  assert.equal(line.textContent, "forgets gun · demo · not audited");
  assert.equal(line.title, "the label");
});

test("prompts are listed in full, to scroll in and to copy from", () => {
  node = current("TrustPrompts");
  extension.nodeCreated(node);
  const [{ element, options }] = node.shown;
  assert.equal(options.serialize, false, "a list is no value of the workflow");
  assert.equal(options.getMaxHeight, undefined, "it grows with the node");
  node.onExecuted({ text: ["2 prompts are erased:\n  a gun -> a cat\n  gun -> cat"] });
  const [list] = element.children;
  assert.equal(list.value.split("\n").length, 3);
  assert.equal(list.readOnly, true);
  node.onExecuted({});
  assert.deepEqual(element.children, []);
});

test("a node that saved a file says so in a line, the whole of it on hover", () => {
  node = current("TrustExportLora");
  extension.nodeCreated(node);
  node.onExecuted({ text: ["written to loras/gun"] });
  const [line] = node.shown[0].element.children;
  assert.deepEqual([line.textContent, line.title], ["written to loras/gun", "written to loras/gun"]);
});

test("a toast says that a run is over or what went wrong, where there are toasts", () => {
  const toasts = [];
  app.extensionManager = { toast: { add: (toast) => toasts.push([toast.severity, toast.detail]) } };
  say(FINISHED);
  say({ ...FINISHED, seconds: undefined });
  say({ node: "7", kind: "notice", text: "out of memory; trying once more" });
  assert.deepEqual(toasts, [
    ["success", "gun: done in 12 s"],
    ["success", "gun: the audit is done"],
    ["warn", "out of memory; trying once more"],
  ]);
});

test("a mistake of ours does not stop the host's own work", () => {
  node = current("TrustUnlearn");
  let ran = 0;
  node.onExecuted = () => (ran += 1);
  extension.nodeCreated(node);
  node.onExecuted({ trust_run: ["no JSON"] });
  assert.equal(ran, 1);
  assert.match(warned.at(-1), /TRUST Unlearn/);
});

test("kept runs are switched and cleared through the server", async () => {
  const toasts = [];
  app.extensionManager = { toast: { add: ({ detail }) => toasts.push(detail) } };
  const [setting] = extension.settings;
  answers["/trust/runs"] = { keep: false, text: "2 finished and 1 unfinished runs, 3.0 MB" };
  setting.onChange(true, undefined); // what the host does when the page loads
  assert.deepEqual(posted, []);
  setting.onChange(false, true);
  await extension.commands[0].function();
  assert.deepEqual(posted, [
    ["/trust/runs", '{"keep":false}'],
    ["/trust/runs", '{"clear":true}'],
  ]);
  assert.deepEqual(toasts, ["Removed: 2 finished and 1 unfinished runs, 3.0 MB"]);
  answers["/trust/runs"] = { error: "the folder is read-only" };
  await extension.commands[0].function();
  assert.equal(toasts.at(-1), "the folder is read-only");
  assert.deepEqual(extension.menuCommands[0].commands, [extension.commands[0].id]);
  delete app.extensionManager;
});

function toasted() {
  const toasts = [];
  app.extensionManager = { toast: { add: (toast) => toasts.push([toast.severity, toast.detail]) } };
  return toasts;
}

test("after a file is saved, and after R, every Load Diff is up to date", async () => {
  let reloads = 0;
  app.reloadNodeDefs = async () => {
    reloads += 1;
    extension.refreshComboInNodes(); // as the front end calls its extensions
  };
  const saved = current("TrustSaveDiff");
  extension.nodeCreated(saved);
  node = current("TrustLoadDiff");
  extension.nodeCreated(node);
  await new Promise((done) => setTimeout(done, 10));
  answers["/trust/label"] = { concepts: ["cat"], family: "demo", audited: false, label: "new" };
  saved.onExecuted({ text: ["saved"] });
  await new Promise((done) => setTimeout(done, 10));
  assert.equal(reloads, 1);
  assert.match(node.shown[0].element.children[0].textContent, /forgets cat/);
  delete app.reloadNodeDefs; // an older front end has the one with a toast alone
  app.refreshComboInNodes = app.refreshed = async () => (reloads += 1);
  saved.onExecuted({ text: ["saved"] });
  assert.equal(reloads, 2);
});

test("labels inside subgraphs are asked for anew, too", async () => {
  const inner = current("TrustLoadDiff");
  extension.nodeCreated(inner);
  node = { subgraph: { _nodes: [inner] } };
  answers["/trust/label"] = { error: "lost" };
  extension.refreshComboInNodes();
  await new Promise((done) => setTimeout(done, 10));
  assert.equal(inner.shown[0].element.children[0].textContent, "lost");
});

test("Cancel takes the time that was left away, from charts and audits", () => {
  node = current("TrustUnlearn");
  extension.nodeCreated(node);
  const [{ element }] = node.shown;
  say({ ...RUN, left: 120 });
  assert.match(element.innerHTML, /2 min left/);
  heard.execution_interrupted({ detail: {} });
  assert.match(element.innerHTML, /polyline/);
  assert.doesNotMatch(element.innerHTML, / left</);
  node = current("TrustAudit");
  extension.nodeCreated(node);
  say({ ...AUDIT, left: 600 });
  say({ ...AUDIT, done: 2, left: 500 });
  const [{ element: line }] = node.shown;
  assert.match(line.children[0].textContent, /8 min left/);
  heard.execution_interrupted({ detail: {} });
  assert.match(line.children[0].textContent, /verdict appears here/);
});

test("an audit that is over keeps its verdict when another node fails", () => {
  node = current("TrustAudit");
  extension.nodeCreated(node);
  say(AUDIT);
  const told = { ua: { value: 1 }, ira: { value: 0.9 }, standing: "good", verdict: "It is gone." };
  node.onExecuted({ trust_audit: [JSON.stringify(told)] });
  heard.execution_error({ detail: { node_type: "KSampler", node_id: "7" } });
  assert.match(node.shown[0].element.children[0].textContent, /gone in 100 %/);
});

test("why a prompt was refused or failed is told in a toast", async () => {
  node = { title: "My concept" };
  const toasts = toasted();
  const why = { type: "custom_validation_failed", details: "words - write a word",
    extra_info: { input_name: "words" } };
  const errors = { 7: { class_type: "TrustConcept", errors: [why] } };
  queued = () => ({ prompt_id: "p", node_errors: errors }); // the rest of the graph runs
  assert.equal((await api.queuePrompt(0, {})).prompt_id, "p");
  queued = () => {
    throw Object.assign(new Error("refused"), { response: { node_errors: errors } });
  };
  await assert.rejects(api.queuePrompt(0, {}), /refused/);
  heard.execution_error({ detail: { node_type: "TrustUnlearn", node_id: "7",
    exception_type: "TRUST.ModelError", exception_message: "load the fp16 file" } });
  assert.deepEqual(toasts, [
    ["error", "My concept: write a word"],
    ["error", "My concept: write a word"],
    ["error", "My concept: load the fp16 file"],
  ]);
  queued = () => ({});
  await api.queuePrompt(0, {});
  assert.equal(toasts.length, 3);
});
