// The conversation: its state is here and is sent completely with every question.

const state = {
  language: "en",
  turns: [],
  draft: "",
  draftImages: [],
  // What was in the composer before the last question was put there to be edited.
  replacedDraft: null,
  pendingId: null,
};

const newAnswers = () => models.map(() => ({ text: "", state: "waiting", error: null }));

const isRunning = (answer) => ["waiting", "writing"].includes(answer.state);

const turnPayloads = (turns) =>
  turns.map((turn) => ({
    question: turn.question,
    images: turn.images,
    answers: turn.answers.map((answer) => answer.text),
  }));

const newId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

function drawAndSave() {
  draw();
  save();
}

function ask(question, images) {
  if (state.pendingId || !question.trim()) return;
  state.pendingId = newId();
  state.turns.push({ question: question.trim(), images, answers: newAnswers() });
  const turns = turnPayloads(state.turns);
  turns.at(-1).answers = [];
  props.value = { id: state.pendingId, turns };
  trigger("submit");
  announce(translate("waiting"));
  drawAndSave();
  scrollToEnd();
  watchServer();
}

const canSend = () => state.draft.trim() && numUploads === 0 && !state.pendingId;

function sendDraft() {
  if (!canSend()) return;
  const { draft, draftImages, replacedDraft } = state;
  if (replacedDraft) state.turns.pop();
  Object.assign(state, replacedDraft || { draft: "", draftImages: [] }, { replacedDraft: null });
  ask(draft, draftImages);
}

// The text so far stays; what still arrives is ignored.
function stop() {
  if (!state.pendingId) return;
  props.value = { id: state.pendingId, turns: [] };
  trigger("stop");
  abandonAnswers("cancelled");
  announce(translate("stopped"));
}

function retry() {
  const last = state.turns.pop();
  if (last) ask(last.question, last.images);
}

// The question stays until the new one is sent.
function edit() {
  const { turns, draft, draftImages } = state;
  const { question, images } = turns.at(-1);
  Object.assign(state, { draft: question, draftImages: [...images], replacedDraft: { draft, draftImages } });
  drawAndSave();
  textarea.focus();
}

function cancelEdit() {
  Object.assign(state, state.replacedDraft, { replacedDraft: null });
  drawAndSave();
  root.querySelector("button.edit").focus();
}

function applyUpdate(update) {
  if (!update || !update.answers || update.id !== state.pendingId) return;
  const last = state.turns.at(-1);
  update.answers.forEach((answer, model) => Object.assign(last.answers[model], answer));
  if (update.answers.some(isRunning)) drawLastAnswers();
  else {
    state.pendingId = null;
    draw();
    const readable = (answer) => (answer.error ? errorText(answer.error) : answer.text);
    announce(last.answers.map((answer, model) => `${answered(model)}: ${readable(answer)}`).join("\n"));
  }
  save();
}

// Answers that were stopped or lost keep their text so far, and the question can be asked again.
function abandonAnswers(endState) {
  if (!state.pendingId) return;
  for (const answer of state.turns.at(-1).answers) if (isRunning(answer)) answer.state = endState;
  state.pendingId = null;
  drawAndSave();
}

async function download() {
  const result = await call(() => server.download({ id: newId(), turns: turnPayloads(state.turns) }));
  if (!result) return;
  const archive = new Blob([bytesOf(result.zip)], { type: "application/zip" });
  const link = make("a", { download: "conversation.zip", href: URL.createObjectURL(archive) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// ---- rendering

const header = make("header");
const conversation = make("section", { class: "conversation" });

function drawHeader() {
  const hasAnswer = state.turns.some((turn) => turn.answers.some((answer) => answer.text));
  header.replaceChildren(
    make("div", { class: "name" }, make("h1", {}, translate("title")), make("span", {}, models.join(" · "))),
    make("nav", { "aria-label": translate("conversation") },
      state.turns.length ? button("new", startConversation, { class: "new" }) : null,
      database ? button("history", openHistory, { class: "history", "aria-haspopup": "dialog" }) : null,
      hasAnswer ? button("download", download, { title: translate("download_hint"), class: "download" }) : null,
      button("language", () => setLanguage(state.language === "zh" ? "en" : "zh"), {
        class: "language", lang: state.language === "zh" ? "en" : "zh-CN",
      })));
}

function drawWelcome() {
  const tiles = props.examples.map((example) =>
    make("button", { type: "button", class: "example", onclick: () => ask(example.question, example.images) },
      make("span", { class: "thumbs" }, ...example.images.map((url) => make("img", { src: url, alt: "" }))),
      make("span", {}, example.question)));
  return make("div", { class: "welcome" },
    make("p", { class: "lead" }, translate("welcome")),
    tiles.length ? make("p", { class: "small" }, translate("examples")) : null,
    make("div", { class: "examples" }, ...tiles),
    make("p", { class: "small" }, translate("privacy")));
}

const hasImages = (turnIndex) => state.turns.slice(0, turnIndex + 1).some((turn) => turn.images.length);

function drawTurn(turn, turnIndex) {
  const hasLetters = turn.images.length > 1;
  const figures = turn.images.map((url, index) => {
    const label = `${translate("image")} ${hasLetters ? String.fromCharCode(65 + index) : ""}`.trim();
    return make("figure", {}, make("img", { src: url, alt: label }), hasLetters ? make("figcaption", {}, label) : null);
  });
  const isLast = turnIndex === state.turns.length - 1;
  const isEdited = isLast && state.replacedDraft !== null;
  return make("article", { class: isEdited && "edited" },
    make("div", { class: "question" },
      hiddenHeading(translate("asked")),
      figures.length ? make("div", { class: "images" }, ...figures) : null,
      make("p", { class: "text" }, turn.question),
      hasImages(turnIndex) ? null : make("p", { class: "note no-image" }, translate("no_image"))),
    make("div", { class: models.length > 1 ? "answers two" : "answers" },
      ...turn.answers.map((answer, model) => drawAnswer(turnIndex, answer, model))),
    isLast && !state.pendingId && !isEdited
      ? make("div", { class: "actions" }, button("retry", retry, { class: "retry" }), button("edit", edit, { class: "edit" }))
      : null);
}

const endNotes = { cancelled: "stopped", length: "length", interrupted: "interrupted", lost: "lost" };

const answered = (model) => translate("answered", { model: models[model] });

function drawAnswer(turnIndex, answer, model) {
  const isComplete = !isRunning(answer) && answer.text;
  const [toggle, panel] = isComplete && hasImages(turnIndex) ? drawAttention(turnIndex, model) : [];
  const text = answer.state === "waiting"
    ? make("p", { class: "text waiting" }, translate("waiting"))
    : answer.text ? make("p", { class: "text" }, ...renderMarkdown(answer.text)) : null;
  return make("div", { class: `answer ${answer.state}`, "aria-busy": isRunning(answer) && "true" },
    hiddenHeading(answered(model)),
    models.length > 1 ? make("span", { class: "model", "aria-hidden": "true" }, models[model]) : null,
    text,
    endNotes[answer.state] ? make("p", { class: "note" }, translate(endNotes[answer.state])) : null,
    answer.error
      ? make("p", { class: "error-text" }, translate("error", { text: errorText(answer.error) }))
      : null,
    isComplete
      ? make("div", { class: "tools" },
        button("copy", (event) => copy(answer.text, event), { class: "copy", "data-key": `copy-${turnIndex}-${model}` }),
        toggle)
      : null,
    panel);
}

function drawLastAnswers() {
  const turnIndex = state.turns.length - 1;
  const shouldScroll = isNearEnd();
  conversation.querySelectorAll("article:last-of-type .answer").forEach((node, model) =>
    node.replaceWith(drawAnswer(turnIndex, state.turns[turnIndex].answers[model], model)));
  if (shouldScroll) scrollToEnd();
}

const isNearEnd = () => window.innerHeight + window.scrollY > document.documentElement.scrollHeight - 160;
const scrollToEnd = () =>
  requestAnimationFrame(() => window.scrollTo({ top: document.documentElement.scrollHeight }));

function draw() {
  const focused = root.contains(document.activeElement) && document.activeElement.dataset.key;
  const shouldScroll = isNearEnd();
  drawHeader();
  conversation.ariaLabel = translate("conversation");
  conversation.replaceChildren(...(state.turns.length ? state.turns.map(drawTurn) : [drawWelcome()]));
  drawComposer();
  if (focused && document.activeElement === document.body) {
    const same = root.querySelector(`[data-key="${focused}"]:not(:disabled)`);
    if (same) same.focus({ preventScroll: true });
    else focusComposer();
  }
  if (shouldScroll && state.turns.length) scrollToEnd();
}

function setLanguage(language) {
  state.language = language;
  try { localStorage.setItem("caldera.language", language); } catch { /* storage is not allowed */ }
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = `${models.join(" · ")} · ${translate("title")}`;
  root.dataset.drop = translate("drop");
  props.value = { language };
  trigger("select");
  draw();
}

root.append(header, conversation, banner, composer, announcement, dialog);
watch("answer_update", () => applyUpdate(props.answer_update));
start();
