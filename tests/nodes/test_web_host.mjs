// Tests of web/trust_unlearn.js on a pretended front end, run by test_web.py.

import assert from "node:assert/strict";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

const KINDS = [
  "TrustUnlearn", "TrustFindNeurons", "TrustAudit", "TrustLoadDiff", "TrustApplyDiff",
  "TrustMergeDiffs", "TrustSaveDiff", "TrustExportLora", "TrustConcept", "KSampler",
];
const RUN = { node: "7", kind: "run", done: 1, total: 9, steps: 3, points: [["a", 0, 1, 0]] };
const AUDIT = { node: "7", kind: "audit", stage: "drawing", done: 1, total: 4 };
const FINISHED = { node: "7", kind: "finished", concept: "gun", seconds: 12 };

const answers = {
  "/trust/label": { concepts: ["gun"], family: "demo", audited: false, label: "the label" },
  "/trust/run": { run: { curves: { a: [[0, 1, 0], [1, 0.5, 0]] }, steps: 2, neurons: {} } },
};
const posted = [];
const warned = [];
console.warn = (...said) => warned.push(said.map(String).join(" "));
const heard = {}; // event -> who listens
const say = (detail) => heard["trust.progress"]({ detail });
let extension, node;
const app = {
  graph: { getNodeById: () => node },
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
    assert.equal(node.onExecuted, undefined);
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
