// The conversation: held here, drawn here, sent whole with every question. Gradio calls this with `element`, `trigger`,
// `props`, `server` and `watch`. Whatever people or models wrote becomes text nodes, never HTML.

const box = element.querySelector(".talk");
const words = props.words, errors = props.errors, models = props.models, limits = props.limits;
const talk = { language: "en", turns: [], draft: "", shown: [], asking: null };
let busyImages = 0;

const say = (name, parts = {}) =>
  words[name][talk.language === "zh" ? 1 : 0].replace(/\{(\w+)\}/g, (_, part) => parts[part]);

const errorText = (error) =>
  talk.language === "zh" && errors[error.code] ? errors[error.code] : error.text;

function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

const button = (name, act, more = {}) =>
  make("button", { type: "button", title: say(name), onclick: act, ...more }, say(name));

// **bold** and `code` are shown as such; all else stays as it was written.
function written(text) {
  return text.split(/(\*\*[^*\n]+\*\*|`[^`\n]+`)/).map((part, place) => {
    if (place % 2 === 0) return part;
    const bold = part.startsWith("**");
    return make(bold ? "strong" : "code", {}, part.slice(bold ? 2 : 1, bold ? -2 : -1));
  });
}

// ---- what is sent, and what comes back

const freshAnswers = () => models.map(() => ({ text: "", state: "waiting", error: null }));

const sentTurns = (turns) =>
  turns.map((turn) => ({
    question: turn.question,
    images: turn.images,
    answers: turn.answers.map((answer) => answer.text),
  }));

const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0")).join("");

function ask(question, images) {
  if (talk.asking || !question.trim()) return;
  talk.asking = newId();
  talk.turns.push({ question: question.trim(), images, answers: freshAnswers() });
  const turns = sentTurns(talk.turns);
  turns.at(-1).answers = [];
  props.value = { id: talk.asking, turns };
  trigger("submit");
  draw();
  keep();
  watchServer();
}

function sendDraft() {
  if (talk.asking || busyImages || !talk.draft.trim()) return;
  const { draft, shown } = talk;
  talk.draft = "";
  talk.shown = [];
  ask(draft, shown);
}

function stop() {
  if (!talk.asking) return;
  props.value = { id: talk.asking, turns: [] };
  trigger("stop");
}

function retry() {
  const last = talk.turns.pop();
  if (last) ask(last.question, last.images);
}

function edit() {
  const last = talk.turns.pop();
  if (!last) return;
  talk.draft = last.question;
  talk.shown = last.images;
  draw();
  keep();
  box.querySelector("textarea").focus();
}

function startAnew() {
  if (talk.asking) stop();
  Object.assign(talk, { turns: [], draft: "", shown: [], asking: null });
  notify(null);
  draw();
  keep();
}

function take(news) {
  if (!news || !news.answers || news.id !== talk.asking) return;
  const last = talk.turns.at(-1);
  news.answers.forEach((answer, model) => Object.assign(last.answers[model], answer));
  const going = news.answers.some((answer) => ["waiting", "writing"].includes(answer.state));
  if (going) drawLastAnswers();
  else {
    talk.asking = null;
    draw();
  }
  keep();
}

// The server is gone: what was said stays, and the question can be asked again.
function lose() {
  if (!talk.asking) return;
  for (const answer of talk.turns.at(-1).answers)
    if (["waiting", "writing"].includes(answer.state)) Object.assign(answer, { state: "lost" });
  talk.asking = null;
  draw();
  keep();
}

async function download() {
  const given = await call(() => server.download({ id: newId(), turns: sentTurns(talk.turns) }));
  if (!given) return;
  const bytes = Uint8Array.from(atob(given.zip), (letter) => letter.charCodeAt(0));
  const link = make("a", { download: "conversation.zip", href: URL.createObjectURL(new Blob([bytes], { type: "application/zip" })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// Calls the server; tells what went wrong, and then returns nothing.
async function call(work) {
  try {
    const given = await work();
    if (!given.error) return given;
    notify("error", say("refused", { text: errorText(given.error) }));
  } catch {
    await checkServer();
    if (!down) notify("error", say("refused", { text: errorText({ code: "internal_error", text: "the server failed at this request" }) }));
  }
  return null;
}

// ---- images

const sized = (bytes) => `${(bytes / (1 << 20)).toFixed(bytes < 10 << 20 ? 1 : 0)} MB`;

const asUrl = (file) =>
  new Promise((give, fail) => {
    const reader = new FileReader();
    reader.onload = () => give(reader.result);
    reader.onerror = fail;
    reader.readAsDataURL(file);
  });

async function show(files) {
  for (const file of files) {
    if (!file.type.startsWith("image/")) notify("error", say("not_image", { name: file.name }));
    else if (file.size > limits.bytes)
      notify("error", say("image_bytes", { name: file.name, size: sized(file.size), limit: sized(limits.bytes) }));
    else await showUrl(await asUrl(file));
  }
}

async function showUrl(url) {
  busyImages += 1;
  draw();
  const given = await call(() => server.check(url));
  busyImages -= 1;
  if (given) {
    talk.shown.push(given.url);
    notify(null);
  }
  draw();
  keep();
  box.querySelector("textarea").focus();
}

function picker(capture) {
  const input = make("input", { type: "file", accept: "image/*", multiple: !capture, capture: capture && "environment", "aria-label": say(capture ? "photo" : "add"),
    onchange: () => { show([...input.files]); input.value = ""; } });
  return input;
}

// ---- drawing

const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

function drawHead() {
  return make("header", {},
    make("div", { class: "name" }, make("h1", {}, say("title")), make("span", {}, models.join(" · "))),
    make("nav", {},
      talk.turns.some((turn) => turn.answers.some((answer) => answer.text)) ? button("download", download, { title: say("download_hint"), class: "download" }) : null,
      talk.turns.length ? button("new", startAnew, { class: "new" }) : null,
      button("language", () => setLanguage(talk.language === "zh" ? "en" : "zh"), { class: "language" })));
}

function drawWelcome() {
  const tiles = props.examples.map((example) =>
    make("button", { type: "button", class: "example", onclick: () => { if (!talk.asking) ask(example.question, example.images); } },
      make("span", { class: "thumbs" }, ...example.images.map((url) => make("img", { src: url, alt: "" }))),
      make("span", {}, example.question)));
  return make("section", { class: "welcome" },
    make("p", { class: "lead" }, say("welcome")),
    tiles.length ? make("p", { class: "small" }, say("examples")) : null,
    make("div", { class: "examples" }, ...tiles),
    make("p", { class: "small" }, say("privacy")));
}

function drawTurn(turn, place) {
  const several = turn.images.length > 1;
  const images = turn.images.map((url, number) =>
    make("figure", {}, make("img", { src: url, alt: `${say("image")} ${several ? letters[number] : ""}` }),
      several ? make("figcaption", {}, `${say("image")} ${letters[number]}`) : null));
  const answers = make("div", { class: models.length > 1 ? "answers two" : "answers" });
  turn.answers.forEach((answer, model) => answers.append(drawAnswer(turn, place, answer, model)));
  return make("article", {},
    make("div", { class: "question" },
      images.length ? make("div", { class: "images" }, ...images) : null,
      make("p", { class: "text" }, turn.question)),
    answers,
    place === talk.turns.length - 1 && !talk.asking
      ? make("div", { class: "acts" }, button("retry", retry, { class: "retry" }), button("edit", edit, { class: "edit" })) : null);
}

const marks = { cancelled: "stopped", length: "length", interrupted: "interrupted", lost: "lost" };

function drawAnswer(turn, place, answer, model) {
  const finished = !["waiting", "writing"].includes(answer.state);
  const drawn = make("div", { class: `answer ${answer.state}`, "aria-live": "polite" },
    models.length > 1 ? make("span", { class: "model" }, models[model]) : null,
    answer.state === "waiting"
      ? make("p", { class: "text waiting" }, say("waiting"))
      : answer.text ? make("p", { class: "text" }, ...written(answer.text)) : null,
    marks[answer.state] ? make("p", { class: "mark" }, say(marks[answer.state])) : null,
    answer.error ? make("p", { class: "fault", role: "alert" }, say("error", { text: errorText(answer.error) })) : null);
  const seen = talk.turns.slice(0, place + 1).some((each) => each.images.length);
  if (finished && answer.text && seen) drawn.append(drawLook(answer, place, model));
  return drawn;
}

function drawLastAnswers() {
  const place = talk.turns.length - 1, turn = talk.turns[place];
  const near = isNearEnd();
  box.querySelectorAll("article:last-of-type .answer").forEach((old, model) =>
    old.replaceWith(drawAnswer(turn, place, turn.answers[model], model)));
  if (near) toEnd();
}

function drawComposer() {
  const area = make("textarea", { rows: 1, placeholder: say("ask"), "aria-label": say("ask"),
    oninput: () => { talk.draft = area.value; fit(area); composer.querySelector(".send").disabled = !talk.draft.trim() || busyImages > 0; keep(); },
    onkeydown: (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); sendDraft(); }
    },
    onpaste: (event) => {
      const files = [...event.clipboardData.files];
      if (files.length) { event.preventDefault(); show(files); }
    } });
  area.value = talk.draft;
  const thumbs = talk.shown.map((url, place) =>
    make("span", { class: "thumb" }, make("img", { src: url, alt: `${say("image")} ${place + 1}` }),
      make("button", { type: "button", title: say("remove"), "aria-label": say("remove"), onclick: () => { talk.shown.splice(place, 1); draw(); keep(); } }, "×")));
  if (busyImages) thumbs.push(make("span", { class: "thumb loading" }));
  const touch = matchMedia("(pointer: coarse)").matches;
  const composer = make("div", { class: "composer" },
    thumbs.length ? make("div", { class: "thumbs" }, ...thumbs) : null,
    area,
    make("div", { class: "row" },
      make("label", { class: "pick", title: say("add") }, picker(false), `+ ${say("add")}`),
      touch ? make("label", { class: "pick", title: say("photo") }, picker(true), say("photo")) : null,
      make("span", { class: "hint" }, say("hint")),
      talk.asking ? button("stop", stop, { class: "halt" })
        : button("send", sendDraft, { class: "send", disabled: !talk.draft.trim() || busyImages > 0 })));
  requestAnimationFrame(() => fit(area));
  return composer;
}

function fit(area) {
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight, 220)}px`;
}

const isNearEnd = () => window.innerHeight + window.scrollY > document.documentElement.scrollHeight - 160;
const toEnd = () => requestAnimationFrame(() => window.scrollTo({ top: document.documentElement.scrollHeight }));

function draw() {
  const active = box.contains(document.activeElement) && document.activeElement.tagName === "TEXTAREA";
  const near = isNearEnd();
  document.documentElement.lang = talk.language === "zh" ? "zh-CN" : "en";
  box.replaceChildren(
    drawHead(),
    make("main", {}, talk.turns.length ? null : drawWelcome(), ...talk.turns.map(drawTurn)),
    banner,
    drawComposer());
  if (active) box.querySelector("textarea").focus();
  if (near && talk.turns.length) toEnd();
}

// ---- the banner: what is wrong with the server or an image, in words

const banner = make("div", { class: "banner", role: "alert", hidden: true });

function notify(kind, text = "") {
  banner.hidden = kind === null;
  banner.className = `banner ${kind || ""}`;
  banner.replaceChildren(text, kind === "error" ? make("button", { type: "button", "aria-label": "×", onclick: () => notify(null) }, "×") : "");
}

let down = false, checking = false;

// A server that refuses the connection is gone, and with it the answer; one that is only slow may still answer.
async function checkServer() {
  if (checking) return;
  checking = true;
  let fault = null;
  try {
    const answer = await fetch("/ready", { cache: "no-store", signal: AbortSignal.timeout(20000) });
    if (!answer.ok) fault = errorText((await answer.json()).error);
  } catch (error) {
    fault = say("down");
    if (error.name !== "TimeoutError") lose();
  } finally {
    checking = false;
  }
  if (fault) {
    down = true;
    notify("down", fault);
  } else if (down) {
    down = false;
    notify("back", say("back"));
    setTimeout(() => { if (!down && banner.classList.contains("back")) notify(null); }, 10000);
  }
}

let watching = null;
function watchServer() {
  if (watching) return;
  watching = setInterval(() => { if (talk.asking || down || Math.random() < 0.1) checkServer(); }, 1500);
}

function setLanguage(language) {
  talk.language = language;
  try { localStorage.setItem("caldera.language", language); } catch { /* not kept */ }
  props.value = { language };
  trigger("select");
  draw();
}

// ---- the beginning

for (const name of ["dragover", "dragleave", "drop"])
  document.addEventListener(name, (event) => {
    if (![...(event.dataTransfer?.types || [])].includes("Files")) return;
    event.preventDefault();
    box.classList.toggle("dropping", name === "dragover");
    if (name === "drop") show([...event.dataTransfer.files]);
  });
box.dataset.drop = say("drop");
watch("news", () => take(props.news));
begin();
