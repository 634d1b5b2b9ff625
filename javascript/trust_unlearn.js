// AUTOMATIC1111 and Forge: opening the tab TRUST asks for the expected time and memory, by the
// button that does so; the hosts tell scripts of a page when another tab is opened, not Python.

onUiTabChange(() => {
  setTimeout(() => {
    const button = gradioApp().querySelector("#trust_expect");
    if (button && button.offsetParent !== null) button.click(); // only while it can be seen
  }, 200);
});
