// What the front end says. English is built in; other languages come from locales/*/main.json.

export const ENGLISH = {
  waiting: "The chart appears here while it runs.",
  effect: "what the concept still does",
  harm: "change of what must stay",
  neurons: "concept neurons",
  left: "{seconds} s left",
  leftMinutes: "{minutes} min left",
  finished: "{concept}: done in {seconds} s",
  audited: "{concept}: the audit is done",
  unaudited: "not audited",
  audit: "audited",
  forgets: "forgets {concepts}",
  unsaid: "concept not said",
  noVerdict: "The verdict appears here.",
  gone: "gone in {share} of pictures",
  kept: "others seen in {share}",
  back: "brought back in {share} by {attack}",
  keepRuns: "Keep runs on disk: stopped ones go on, finished ones are not trained again",
  clearRuns: "Clear kept runs",
  clearedRuns: "Removed: {runs}",
};

let current = ENGLISH;

/** Take the texts of a language over; what it lacks stays English. */
export function useTexts(texts) {
  current = { ...ENGLISH, ...(texts ?? {}) };
}

/** Return a text with its {places} filled in. */
export function text(key, values = {}) {
  return current[key].replace(/\{(\w+)\}/g, (whole, name) => String(values[name] ?? whole));
}

/** Write a share 0..1 as per cent; an unknown one as a dash. */
export function percent(share) {
  return typeof share === "number" && Number.isFinite(share) ? `${Math.round(share * 100)} %` : "–";
}

/** Say how long it still takes; nothing while nobody knows. */
export function timeLeft(seconds) {
  if (!Number.isFinite(seconds)) return "";
  if (seconds < 100) return text("left", { seconds });
  return text("leftMinutes", { minutes: Math.round(seconds / 60) });
}
