// TRUST Unlearn in the browser: a chart in Unlearn and Find Neurons, a list in Prompts, a badge in
// Audit, a label in Load Diff, what the other nodes say, a toast at the end. Where the front end
// lacks what a part needs, the part is left out.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { runPicture } from "./trust/draw.js";
import { allNodes, nodeAt } from "./trust/graph.js";
import { auditLine, badge, diffLine } from "./trust/labels.js";
import { failure, refusals } from "./trust/errors.js";
import { emptyRun, finishedRun, stopped, withProgress } from "./trust/run.js";
import { lineOf, listOf } from "./trust/said.js";
import { text, useTexts } from "./trust/texts.js";

const CHARTED = { TrustUnlearn: 170, TrustFindNeurons: 170 }; // pixels
const LISTED = { TrustPrompts: 200 };
const LINE = 60; // the host keeps a margin of 10 around it
const SAYING = ["TrustApplyDiff", "TrustMergeDiffs", "TrustSaveDiff", "TrustExportLora"];
const BADGES = { good: "#2f8f6b", mixed: "#b7791f", bad: "#c0283c" };
const labels = new WeakMap(); // node -> how its label is asked for
const runs = new WeakMap(); // node -> what is known of its run
const elements = new WeakMap(); // node -> where it is shown
const audits = new Map(); // node -> what its line said before the audit that runs now

/** Give a node a DOM widget, which both renderers show; false where there is none. */
function addView(node, height, grows = false) {
  if (typeof node.addDOMWidget !== "function") return false;
  const element = document.createElement("div");
  element.style.cssText = "width:100%;overflow:hidden;box-sizing:border-box;";
  const sized = () => height;
  const options = { serialize: false, getMinHeight: sized };
  if (!grows) Object.assign(options, { getMaxHeight: sized, getHeight: sized });
  const widget = node.addDOMWidget("trust_view", "trust_view", element, options);
  widget.serialize = false; // a picture is no value: it belongs neither in files nor in prompts
  elements.set(node, element);
  return true;
}

function chain(object, name, after) {
  const before = object[name];
  object[name] = function (...args) {
    const result = before?.apply(this, args);
    guarded(() => after.apply(this, args));
    return result;
  };
}

function warn(error) {
  console.warn("TRUST Unlearn:", error);
}

/** Our mistakes must not stop the host's own work. */
function guarded(work) {
  try {
    work();
  } catch (error) {
    warn(error);
  }
}

function parsed(message, key) {
  const found = message?.[key]?.[0];
  return found ? JSON.parse(found) : null;
}

function showRun(node, run) {
  runs.set(node, run);
  elements.get(node).innerHTML = runPicture(run); // escapes what it is given
}

function setUpChart(node, height) {
  if (!addView(node, height)) return;
  showRun(node, emptyRun());
  chain(node, "onExecuted", (message) => {
    const told = parsed(message, "trust_run");
    if (told) showRun(node, finishedRun(told));
  });
}

function showLine(node, said, title, colour) {
  elements.get(node).replaceChildren(lineOf(said, title, colour));
}

function setUpBadge(node) {
  if (!addView(node, LINE)) return;
  showLine(node, text("noVerdict"), "");
  chain(node, "onExecuted", (message) => {
    const told = parsed(message, "trust_audit");
    audits.delete(node);
    if (!told) return;
    const shown = badge(told);
    showLine(node, shown.text, told.verdict, BADGES[shown.kind]);
  });
}

/** Show what a node says when it has run. */
function setUpText(node, height, shown) {
  if (!addView(node, height, shown === listOf)) return;
  chain(node, "onExecuted", (message) => {
    const said = message?.text?.[0];
    elements.get(node).replaceChildren(...(said ? [shown(said, said)] : []));
  });
}

/** Let every Load Diff offer the file that was just saved, and graphs that are loaded later. */
function setUpSaved(node) {
  chain(node, "onExecuted", () => {
    const reload = app.reloadNodeDefs ?? app.refreshComboInNodes;
    Promise.resolve(reload?.call(app)).catch(warn);
  });
}

function setUpLabel(node) {
  const widget = node.widgets?.find(({ name }) => name === "diff_name");
  if (!widget || !addView(node, LINE)) return;
  const refresh = async () => {
    const name = widget.value;
    if (!name) return;
    const answer = await api.fetchApi(`/trust/label?name=${encodeURIComponent(name)}`);
    const told = await answer.json();
    if (widget.value !== name) return; // another one was chosen meanwhile
    showLine(node, diffLine(told), told.label ?? told.error ?? "");
    widget.tooltip = told.label ?? told.error; // shown when the name is hovered over
  };
  const soon = () => refresh().catch(warn);
  labels.set(node, soon);
  chain(widget, "callback", soon);
  chain(node, "onConfigure", soon);
  setTimeout(soon, 0);
}

/** Ask for all labels anew: a file may be there now, or be another. */
function refreshLabels() {
  for (const node of allNodes(root())) labels.get(node)?.();
}

const root = () => app.rootGraph ?? app.graph;
const findNode = (id) => nodeAt(root(), id);

function onProgress({ detail }) {
  const node = findNode(detail.node);
  if (detail.kind === "finished") {
    const key = detail.seconds === undefined ? "audited" : "finished";
    toast(text(key, detail));
  } else if (detail.kind === "notice") {
    toast(detail.text, "warn");
  } else if (detail.kind === "run" && node && runs.has(node)) {
    showRun(node, withProgress(runs.get(node), detail));
  } else if (detail.kind === "audit" && node && elements.has(node)) {
    if (!audits.has(node)) audits.set(node, elements.get(node).firstChild);
    showLine(node, auditLine(detail), "");
  }
}

/** After Cancel and after an error no time is left: take away what said so. */
function onEnded(successful) {
  for (const node of allNodes(root())) {
    if (!successful && runs.has(node)) showRun(node, stopped(runs.get(node)));
    if (!successful && audits.has(node)) {
      elements.get(node).replaceChildren(...[audits.get(node)].filter(Boolean));
    }
    audits.delete(node);
  }
}

/** The host says that a node failed; why, it says under its details alone. */
function onError({ detail }) {
  onEnded(false);
  const said = failure(detail, (id) => findNode(id)?.title);
  if (said) toast(said, "error");
}

/** Say why a prompt was refused: the host shows that it was, and each reason under its details. */
function watchQueue() {
  const own = api.queuePrompt;
  const name = (id) => findNode(id)?.title;
  const tell = (errors) =>
    guarded(() => refusals(errors, name).forEach((said) => toast(said, "error")));
  api.queuePrompt = async function (...args) {
    try {
      const answer = await own.apply(this, args);
      tell(answer?.node_errors);
      return answer;
    } catch (error) {
      tell(error?.response?.node_errors);
      throw error;
    }
  };
}

/** Show what a node showed when it ran: a host that answers from its cache may not say it again. */
async function onCached({ detail }) {
  for (const id of detail.nodes ?? []) {
    const node = findNode(id);
    if (!node || !runs.has(node)) continue;
    const asked = new URLSearchParams({ prompt: detail.prompt_id, node: id });
    const answer = await api.fetchApi(`/trust/run?${asked}`);
    const told = answer.ok ? (await answer.json()).run : null;
    if (told) showRun(node, finishedRun(told));
  }
}

function toast(detail, severity = "success") {
  app.extensionManager?.toast?.add({
    severity,
    summary: "TRUST Unlearn",
    detail,
    life: severity === "error" ? 12000 : 6000,
  });
}

/** Switch keeping runs, or clear them; the server answers with what there is. */
async function askRuns(asked) {
  const body = JSON.stringify(asked);
  const headers = { "Content-Type": "application/json" };
  const answer = await api.fetchApi("/trust/runs", { method: "POST", headers, body });
  const told = await answer.json();
  if (told.error) toast(told.error, "error");
  return told;
}

async function clearRuns() {
  const told = await askRuns({ clear: true });
  if (!told.error) toast(text("clearedRuns", { runs: told.text }));
}

async function loadTexts() {
  const language =
    app.extensionManager?.setting?.get("Comfy.Locale") ??
    app.ui?.settings?.getSettingValue?.("Comfy.Locale") ??
    "en";
  const answer = await api.fetchApi("/i18n");
  if (answer.ok) useTexts((await answer.json())[language]?.trustUnlearn);
}

app.registerExtension({
  name: "trust.unlearn",
  settings: [
    {
      id: "TrustUnlearn.keepRuns",
      name: text("keepRuns"),
      type: "boolean",
      defaultValue: true,
      onChange: (keep, before) => {
        // The host also calls this when the page loads: only a change is news to the server.
        if (before !== undefined && keep !== before) askRuns({ keep }).catch(warn);
      },
    },
  ],
  commands: [
    {
      id: "TrustUnlearn.clearRuns",
      label: text("clearRuns"),
      icon: "pi pi-trash",
      function: () => clearRuns().catch(warn),
    },
  ],
  menuCommands: [{ path: ["Extensions", "TRUST Unlearn"], commands: ["TrustUnlearn.clearRuns"] }],
  async setup() {
    api.addEventListener("trust.progress", (event) => guarded(() => onProgress(event)));
    api.addEventListener("execution_cached", (event) => onCached(event).catch(warn));
    api.addEventListener("execution_error", (event) => guarded(() => onError(event)));
    api.addEventListener("execution_interrupted", () => guarded(() => onEnded(false)));
    api.addEventListener("execution_success", () => guarded(() => onEnded(true)));
    guarded(watchQueue);
    await loadTexts().catch(warn);
  },
  refreshComboInNodes() {
    guarded(refreshLabels);
  },
  nodeCreated(node) {
    guarded(() => {
      const kind = node.comfyClass;
      if (kind in CHARTED) setUpChart(node, CHARTED[kind]);
      if (kind === "TrustAudit") setUpBadge(node);
      if (kind === "TrustLoadDiff") setUpLabel(node);
      if (SAYING.includes(kind)) setUpText(node, LINE, lineOf);
      if (kind in LISTED) setUpText(node, LISTED[kind], listOf);
      if (kind === "TrustSaveDiff") setUpSaved(node);
    });
  },
});
