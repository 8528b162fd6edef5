// The composer of the next question. Its text area is never replaced, so that a redraw disturbs no input method.

const editNote = make("div", { class: "edit-note" });
const thumbnails = make("div", { class: "thumbs" });
const textarea = make("textarea", {
  rows: 1,
  "data-key": "question",
  oninput: () => {
    state.draft = textarea.value;
    fitHeight();
    composer.querySelector(".send")?.toggleAttribute("disabled", !canSend());
    save();
  },
  onkeydown: (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); sendDraft(); }
  },
  onpaste: (event) => {
    const files = [...event.clipboardData.files];
    if (files.length) { event.preventDefault(); addFiles(files); }
  },
});
const composerRow = make("div", { class: "row" });
const composer = make("div", { class: "composer" }, editNote, thumbnails, textarea, composerRow);

function drawComposer() {
  editNote.replaceChildren(...(state.replacedDraft
    ? [make("span", {}, translate("editing")), button("cancel", cancelEdit, { class: "cancel" })]
    : []));
  thumbnails.replaceChildren(...drawThumbnails());
  textarea.placeholder = textarea.ariaLabel = translate("ask");
  if (textarea.value !== state.draft) textarea.value = state.draft;
  composerRow.replaceChildren(
    makeFileButton("add", false),
    ...(isTouch ? [makeFileButton("photo", true)] : []),
    make("span", { class: "hint" }, translate("hint")),
    state.pendingId
      ? button("stop", stop, { class: "stop" })
      : button("send", sendDraft, { class: "send", disabled: !canSend() }));
  requestAnimationFrame(fitHeight);
}

// On a touch screen, the focus would open the keyboard.
function focusComposer() {
  if (!isTouch) textarea.focus();
}

function fitHeight() {
  textarea.style.height = "auto";
  textarea.style.height = `${Math.min(textarea.scrollHeight, 220)}px`;
}

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && state.replacedDraft && !event.isComposing && !dialog.open) cancelEdit();
});

// What is scrolled into view, or focused, is above the composer.
new ResizeObserver(() => {
  const isSticky = getComputedStyle(composer).position === "sticky";
  document.documentElement.style.scrollPaddingBottom = isSticky ? `${composer.offsetHeight + 24}px` : "16px";
}).observe(composer);
