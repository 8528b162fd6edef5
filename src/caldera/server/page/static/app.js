// The conversation: its state is here and is sent completely with every question. Gradio runs this script with
// `element`, `trigger`, `props`, `server` and `watch`. Text of users and models becomes text nodes, never HTML.

const root = element.querySelector(".chat");
const { texts, errors, models, limits } = props;
const state = { language: "en", turns: [], draft: "", draftImages: [], pendingId: null };
let numUploads = 0;

const translate = (name, values = {}) =>
  texts[name][state.language === "zh" ? 1 : 0].replace(/\{(\w+)\}/g, (_, key) => values[key]);

const errorText = (error) =>
  state.language === "zh" && errors[error.code] ? errors[error.code] : error.text;

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

const button = (name, onclick, attributes = {}) =>
  make("button", { type: "button", title: translate(name), onclick, ...attributes }, translate(name));

const bytesOf = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

// Renders **bold** and `code`; everything else stays as it was written.
function renderMarkdown(text) {
  return text.split(/(\*\*[^*\n]+\*\*|`[^`\n]+`)/).map((part, index) => {
    if (index % 2 === 0) return part;
    const isBold = part.startsWith("**");
    return make(isBold ? "strong" : "code", {}, part.slice(isBold ? 2 : 1, isBold ? -2 : -1));
  });
}

// ---- questions and answers

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
  drawAndSave();
  watchServer();
}

const canSend = () => state.draft.trim() && numUploads === 0;

function sendDraft() {
  if (state.pendingId || !canSend()) return;
  const { draft, draftImages } = state;
  Object.assign(state, { draft: "", draftImages: [] });
  ask(draft, draftImages);
}

function stop() {
  if (!state.pendingId) return;
  props.value = { id: state.pendingId, turns: [] };
  trigger("stop");
}

function retry() {
  const last = state.turns.pop();
  if (last) ask(last.question, last.images);
}

function edit() {
  const last = state.turns.pop();
  if (!last) return;
  Object.assign(state, { draft: last.question, draftImages: last.images });
  drawAndSave();
  root.querySelector("textarea").focus();
}

function reset() {
  if (state.pendingId) stop();
  Object.assign(state, { turns: [], draft: "", draftImages: [], pendingId: null });
  notify(null);
  drawAndSave();
}

function applyUpdate(update) {
  if (!update || !update.answers || update.id !== state.pendingId) return;
  const last = state.turns.at(-1);
  update.answers.forEach((answer, model) => Object.assign(last.answers[model], answer));
  if (update.answers.some(isRunning)) drawLastAnswers();
  else {
    state.pendingId = null;
    draw();
  }
  save();
}

// The connection is lost: the text so far stays, and the question can be asked again.
function abandonAnswers() {
  if (!state.pendingId) return;
  for (const answer of state.turns.at(-1).answers) if (isRunning(answer)) answer.state = "lost";
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

// ---- images

const formatBytes = (bytes) => `${(bytes / (1 << 20)).toFixed(bytes < 10 << 20 ? 1 : 0)} MB`;

const readAsDataUrl = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = reject;
    reader.readAsDataURL(file);
  });

async function addFiles(files) {
  for (const file of files) {
    const sizes = { name: file.name, size: formatBytes(file.size), limit: formatBytes(limits.bytes) };
    if (!file.type.startsWith("image/")) notify("error", translate("not_image", { name: file.name }));
    else if (file.size > limits.bytes) notify("error", translate("image_bytes", sizes));
    else await addImage(await readAsDataUrl(file));
  }
}

async function addImage(url) {
  numUploads += 1;
  draw();
  const result = await call(() => server.check_image(url));
  numUploads -= 1;
  if (result) {
    state.draftImages.push(result.url);
    notify(null);
  }
  drawAndSave();
  root.querySelector("textarea").focus();
}

function makeFileInput(capture) {
  return make("input", {
    type: "file",
    accept: "image/*",
    multiple: !capture,
    capture: capture && "environment",
    "aria-label": translate(capture ? "photo" : "add"),
    onchange: ({ target }) => { addFiles([...target.files]); target.value = ""; },
  });
}

// ---- rendering

function drawHeader() {
  const hasAnswer = state.turns.some((turn) => turn.answers.some((answer) => answer.text));
  return make("header", {},
    make("div", { class: "name" }, make("h1", {}, translate("title")), make("span", {}, models.join(" · "))),
    make("nav", {},
      hasAnswer ? button("download", download, { title: translate("download_hint"), class: "download" }) : null,
      state.turns.length ? button("new", reset, { class: "new" }) : null,
      button("language", () => setLanguage(state.language === "zh" ? "en" : "zh"), { class: "language" })));
}

function drawWelcome() {
  const tiles = props.examples.map((example) =>
    make("button", { type: "button", class: "example", onclick: () => ask(example.question, example.images) },
      make("span", { class: "thumbs" }, ...example.images.map((url) => make("img", { src: url, alt: "" }))),
      make("span", {}, example.question)));
  return make("section", { class: "welcome" },
    make("p", { class: "lead" }, translate("welcome")),
    tiles.length ? make("p", { class: "small" }, translate("examples")) : null,
    make("div", { class: "examples" }, ...tiles),
    make("p", { class: "small" }, translate("privacy")));
}

function drawTurn(turn, turnIndex) {
  const hasLetters = turn.images.length > 1;
  const figures = turn.images.map((url, index) => {
    const label = `${translate("image")} ${hasLetters ? String.fromCharCode(65 + index) : ""}`;
    return make("figure", {}, make("img", { src: url, alt: label }), hasLetters ? make("figcaption", {}, label) : null);
  });
  const isLast = turnIndex === state.turns.length - 1;
  return make("article", {},
    make("div", { class: "question" },
      figures.length ? make("div", { class: "images" }, ...figures) : null,
      make("p", { class: "text" }, turn.question)),
    make("div", { class: models.length > 1 ? "answers two" : "answers" },
      ...turn.answers.map((answer, model) => drawAnswer(turnIndex, answer, model))),
    isLast && !state.pendingId
      ? make("div", { class: "actions" }, button("retry", retry, { class: "retry" }), button("edit", edit, { class: "edit" }))
      : null);
}

const endNotes = { cancelled: "stopped", length: "length", interrupted: "interrupted", lost: "lost" };

function drawAnswer(turnIndex, answer, model) {
  const hasImages = state.turns.slice(0, turnIndex + 1).some((turn) => turn.images.length);
  const text = answer.state === "waiting"
    ? make("p", { class: "text waiting" }, translate("waiting"))
    : answer.text ? make("p", { class: "text" }, ...renderMarkdown(answer.text)) : null;
  return make("div", { class: `answer ${answer.state}`, "aria-live": "polite" },
    models.length > 1 ? make("span", { class: "model" }, models[model]) : null,
    text,
    endNotes[answer.state] ? make("p", { class: "note" }, translate(endNotes[answer.state])) : null,
    answer.error
      ? make("p", { class: "error-text", role: "alert" }, translate("error", { text: errorText(answer.error) }))
      : null,
    !isRunning(answer) && answer.text && hasImages ? drawAttention(turnIndex, model) : null);
}

function drawLastAnswers() {
  const turnIndex = state.turns.length - 1;
  const shouldScroll = isNearEnd();
  root.querySelectorAll("article:last-of-type .answer").forEach((node, model) =>
    node.replaceWith(drawAnswer(turnIndex, state.turns[turnIndex].answers[model], model)));
  if (shouldScroll) scrollToEnd();
}

function drawThumbnails() {
  const thumbnails = state.draftImages.map((url, index) =>
    make("span", { class: "thumb" },
      make("img", { src: url, alt: `${translate("image")} ${index + 1}` }),
      make("button", {
        type: "button",
        title: translate("remove"),
        "aria-label": translate("remove"),
        onclick: () => { state.draftImages.splice(index, 1); drawAndSave(); },
      }, "×")));
  if (numUploads) thumbnails.push(make("span", { class: "thumb loading" }));
  return thumbnails.length ? make("div", { class: "thumbs" }, ...thumbnails) : null;
}

function drawComposer() {
  const textarea = make("textarea", {
    rows: 1,
    placeholder: translate("ask"),
    "aria-label": translate("ask"),
    oninput: () => {
      state.draft = textarea.value;
      fitHeight(textarea);
      const send = composer.querySelector(".send");
      if (send) send.disabled = !canSend();
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
  textarea.value = state.draft;
  const isTouch = matchMedia("(pointer: coarse)").matches;
  const composer = make("div", { class: "composer" },
    drawThumbnails(),
    textarea,
    make("div", { class: "row" },
      make("label", { class: "file-button", title: translate("add") }, makeFileInput(false), `+ ${translate("add")}`),
      isTouch
        ? make("label", { class: "file-button", title: translate("photo") }, makeFileInput(true), translate("photo"))
        : null,
      make("span", { class: "hint" }, translate("hint")),
      state.pendingId
        ? button("stop", stop, { class: "stop" })
        : button("send", sendDraft, { class: "send", disabled: !canSend() })));
  requestAnimationFrame(() => fitHeight(textarea));
  return composer;
}

function fitHeight(textarea) {
  textarea.style.height = "auto";
  textarea.style.height = `${Math.min(textarea.scrollHeight, 220)}px`;
}

const isNearEnd = () => window.innerHeight + window.scrollY > document.documentElement.scrollHeight - 160;
const scrollToEnd = () =>
  requestAnimationFrame(() => window.scrollTo({ top: document.documentElement.scrollHeight }));

function draw() {
  const isTyping = root.contains(document.activeElement) && document.activeElement.tagName === "TEXTAREA";
  const shouldScroll = isNearEnd();
  document.documentElement.lang = state.language === "zh" ? "zh-CN" : "en";
  root.replaceChildren(
    drawHeader(),
    make("main", {}, state.turns.length ? null : drawWelcome(), ...state.turns.map(drawTurn)),
    banner,
    drawComposer());
  if (isTyping) root.querySelector("textarea").focus();
  if (shouldScroll && state.turns.length) scrollToEnd();
}

// ---- banner: errors of the server and of images

const banner = make("div", { class: "banner", role: "alert", hidden: true });

function notify(kind, text = "") {
  banner.hidden = kind === null;
  banner.className = `banner ${kind || ""}`;
  const close = make("button", { type: "button", "aria-label": "×", onclick: () => notify(null) }, "×");
  banner.replaceChildren(text, kind === "error" ? close : "");
}

let isDown = false, isChecking = false;

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
    if (error.name !== "TimeoutError") abandonAnswers();
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

let watchTimer = null;
function watchServer() {
  if (watchTimer) return;
  watchTimer = setInterval(() => { if (state.pendingId || isDown || Math.random() < 0.1) checkServer(); }, 1500);
}

function setLanguage(language) {
  state.language = language;
  try { localStorage.setItem("caldera.language", language); } catch { /* storage is not allowed */ }
  props.value = { language };
  trigger("select");
  draw();
}

// ---- start

for (const name of ["dragover", "dragleave", "drop"])
  document.addEventListener(name, (event) => {
    if (![...(event.dataTransfer?.types || [])].includes("Files")) return;
    event.preventDefault();
    root.classList.toggle("dropping", name === "dragover");
    if (name === "drop") addFiles([...event.dataTransfer.files]);
  });
root.dataset.drop = translate("drop");
watch("answer_update", () => applyUpdate(props.answer_update));
start();
