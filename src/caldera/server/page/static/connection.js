// Calls of the server, and the banner that shows its errors and those of images.

const banner = make("div", { class: "banner", role: "alert", hidden: true });
let isDown = false, isChecking = false, watchTimer = null;

function notify(kind, text = "") {
  banner.hidden = kind === null;
  banner.className = `banner ${kind || ""}`;
  const close = () =>
    make("button", { type: "button", title: translate("close"), "aria-label": translate("close"), onclick: () => notify(null) }, "×");
  banner.replaceChildren(text, kind === "error" ? close() : "");
}

// Returns the result of a server function; shows an error and returns null if it failed.
async function call(serverFunction) {
  try {
    const result = await serverFunction();
    if (!result.error) return result;
    notify("error", translate("rejected", { text: errorText(result.error) }));
  } catch {
    await checkServer();
    const error = { code: "internal_error", text: "the server failed at this request" };
    if (!isDown) notify("error", translate("rejected", { text: errorText(error) }));
  }
  return null;
}

// If the server rejects the connection, it is gone, and so is the answer; a slow server may still answer.
async function checkServer() {
  if (isChecking) return;
  isChecking = true;
  let problem = null;
  try {
    const response = await fetch("/ready", { cache: "no-store", signal: AbortSignal.timeout(20000) });
    const { error } = response.ok ? {} : await response.json();
    if (error) problem = errorText({ code: error.code, text: error.message });
  } catch (error) {
    problem = translate("down");
    if (error.name !== "TimeoutError") abandonAnswers("lost");
  } finally {
    isChecking = false;
  }
  if (problem) {
    isDown = true;
    notify("down", problem);
  } else if (isDown) {
    isDown = false;
    notify("back", translate("back"));
    setTimeout(() => { if (!isDown && banner.classList.contains("back")) notify(null); }, 10000);
  }
}

function watchServer() {
  if (watchTimer) return;
  watchTimer = setInterval(() => { if (state.pendingId || isDown || Math.random() < 0.1) checkServer(); }, 1500);
}
