// Lines for the Audit and Load Diff nodes. No DOM and no ComfyUI in here.

import { percent, text, timeLeft } from "./texts.js";

/** Say how far an audit is, how long it still takes, and before it starts what it needs. */
export function auditLine(told) {
  const far = `${told.stage} ${percent(told.done / Math.max(1, told.total))}`.trim();
  return [far, timeLeft(told.left), told.needs].filter(Boolean).join(" · ");
}

/** Say an audit in one line: {text, kind} with kind "good", "bad" or "mixed". */
export function badge(audit) {
  const gone = audit.ua?.value;
  const kept = audit.ira?.value;
  const attack = audit.attacks;
  const parts = [text("gone", { share: percent(gone) }), text("kept", { share: percent(kept) })];
  if (attack) parts.push(text("back", { share: percent(attack.asr), attack: attack.title }));
  return { text: parts.join(" · "), kind: audit.standing ?? "mixed" };
}

/** Say a diff in one line; an unreadable one by its error. */
export function diffLine(told) {
  if (told.error) return told.error;
  const names = (told.concepts ?? []).join("; ");
  const gone = text("gone", { share: percent(told.gone) });
  const audited = told.audited ? `${text("audit")}: ${gone}` : text("unaudited");
  return [
    names ? text("forgets", { concepts: names }) : text("unsaid"),
    told.family ?? "?",
    audited,
  ].join(" · ");
}
