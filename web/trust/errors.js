// What went wrong, in one sentence for a toast. No DOM and no ComfyUI in here.

const OURS = /^Trust[A-Z]/;
const KINDS = /^TRUST\.\w+Error$/;

/** Say why a prompt was refused: one sentence for each node of ours and each reason. */
export function refusals(errors, name) {
  const found = Object.entries(errors ?? {}).flatMap(([id, told]) =>
    OURS.test(told.class_type)
      ? (told.errors ?? []).map((one) => sentence(name(id) ?? told.class_type, reason(one)))
      : [],
  );
  return [...new Set(found)]; // the host repeats a reason for each input that was looked at
}

/** Say why a node of ours failed; null for another's, and for what is no message of ours. */
export function failure(detail, name) {
  if (!OURS.test(detail.node_type) || !KINDS.test(detail.exception_type)) return null;
  return sentence(name(detail.node_id) ?? detail.node_type, detail.exception_message);
}

/** "input - why" of a check of ours is why; else what the host says itself. */
function reason({ type, message, details, extra_info }) {
  if (type !== "custom_validation_failed") return [message, details].filter(Boolean).join(": ");
  const input = extra_info?.input_name;
  return details.startsWith(`${input} - `) ? details.slice(input.length + 3) : details;
}

function sentence(node, said) {
  return `${node}: ${String(said).trim()}`;
}
