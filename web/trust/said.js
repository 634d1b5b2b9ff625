// What a node says, as elements of the page. No ComfyUI in here.

/** A line of two rows at most; the whole of it on hover. */
export function lineOf(said, title, colour) {
  const line = document.createElement("div");
  line.textContent = said;
  line.title = title;
  line.style.cssText =
    // A border, not padding: what is cut off must not show in it.
    "box-sizing:content-box;border:solid transparent;border-width:4px 8px;border-radius:6px;" +
    "font:11px/14px sans-serif;cursor:help;overflow:hidden;max-height:28px;" +
    "display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:2;" +
    (colour
      ? `background:${colour};color:#fff;`
      : "background:var(--comfy-input-bg,#333);color:var(--input-text,#ddd);");
  return line;
}

/** A list to scroll in and to copy from: the host leaves both to a text field. */
export function listOf(said) {
  const list = document.createElement("textarea");
  list.value = said;
  list.readOnly = true;
  list.wrap = "off";
  // The wheel scrolls it and does not zoom the graph; in the Vue renderer once it was clicked.
  list.onwheel = (event) => event.stopPropagation();
  list.dataset.captureWheel = "true";
  list.style.cssText =
    "box-sizing:border-box;width:100%;height:100%;padding:4px 8px;border:0;border-radius:6px;" +
    "resize:none;font:11px/14px sans-serif;" +
    "background:var(--comfy-input-bg,#333);color:var(--input-text,#ddd);";
  return list;
}
