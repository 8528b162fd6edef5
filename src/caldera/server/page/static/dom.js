// Elements, and texts in the user's language. Gradio runs all scripts as one function with `element`, `trigger`,
// `props`, `server` and `watch`. Text of users and models becomes text nodes, never HTML.

const root = element.querySelector(".chat");
const { texts, errors, models, limits } = props;
const isTouch = matchMedia("(pointer: coarse)").matches;

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

// A redraw finds the focused button again by its key, which is its name unless there are several.
const button = (name, onclick, attributes = {}) =>
  make("button", { type: "button", title: translate(name), "data-key": name, onclick, ...attributes }, translate(name));

const hiddenHeading = (text) => make("h2", { class: "visually-hidden" }, text);

const bytesOf = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

// Renders **bold** and `code`; everything else stays as it was written.
function renderMarkdown(text) {
  return text.split(/(\*\*[^*\n]+\*\*|`[^`\n]+`)/).map((part, index) => {
    if (index % 2 === 0) return part;
    const isBold = part.startsWith("**");
    return make(isBold ? "strong" : "code", {}, part.slice(isBold ? 2 : 1, isBold ? -2 : -1));
  });
}

// Read aloud by a screen reader when it changes; invisible.
const announcement = make("div", { class: "visually-hidden", role: "status" });
const announce = (text) => { announcement.textContent = text; };

// The clipboard's own interface exists only where the page is local or encrypted.
async function copy(text, { currentTarget }) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", { class: "visually-hidden" });
    area.value = text;
    root.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    currentTarget.focus();
  }
  currentTarget.textContent = translate("copied");
  announce(translate("copied"));
  setTimeout(() => { currentTarget.textContent = translate("copy"); }, 2000);
}

const scrollBehavior = () =>
  matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth";
