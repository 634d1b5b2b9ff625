// AUTOMATIC1111 and Forge: opening the tab TRUST asks for the expected time and memory, the jobs
// and what is on every picture, by the buttons that do so; the hosts tell scripts of a page when
// another tab is opened, not Python.

onUiTabChange(() => {
  setTimeout(() => {
    const button = (name) => gradioApp().querySelector(name);
    const first = button("#trust_expect");
    if (!first || first.offsetParent === null) return; // only while the tab can be seen
    for (const name of ["#trust_expect", "#trust_jobs_refresh", "#trust_standing_refresh"]) {
      button(name)?.click(); // the later two also when they are folded away
    }
  }, 200);
});

// The demo model that the tab has just laid out is chosen as a click on its card would choose it,
// once the host's list of checkpoints has been asked for anew: it is not in the page's yet.
onUiUpdate(() => {
  const laid = gradioApp().querySelector("#trust_demo_laid:not([data-seen])");
  if (!laid || typeof selectCheckpoint !== "function") return;
  laid.dataset.seen = "yes";
  const refresh = "#refresh_sd_model_checkpoint, #forge_refresh_checkpoint";
  gradioApp().querySelector(refresh)?.click();
  setTimeout(() => selectCheckpoint(laid.dataset.checkpoint), 1500);
});

// A run that has just ended has made a diff: the accordions of txt2img and img2img offer it, too.
onUiUpdate(() => {
  const done = gradioApp().querySelector("#trust_state_done:not([data-seen])");
  if (!done) return;
  done.dataset.seen = "yes";
  for (const tab of ["txt2img", "img2img"]) {
    gradioApp().querySelector(`#script_${tab}_trust_trust_refresh`)?.click();
  }
});
