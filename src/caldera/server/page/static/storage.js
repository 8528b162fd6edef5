// Stores conversations in this browser, and nowhere else. Each tab has one of them open, which a reload restores.
// Conversations that were not changed for 30 days are deleted. Names in the database are those of the first version, so
// that it still opens: `talks` are conversations, `tab` is the id, `at` the time of the last change, `shown` the images
// of the draft.

const MAX_AGE = 30 * 24 * 3600 * 1000;
let conversationId = null, database = null, saveTimer = null;

// Another tab that has the same conversation open continues its own copy, so that neither overwrites the other.
const otherTabs = new BroadcastChannel("caldera");
otherTabs.onmessage = ({ data }) => {
  if (data !== conversationId) return;
  setConversation(newId());
  save();
};

const openDatabase = () =>
  new Promise((resolve, reject) => {
    const request = indexedDB.open("caldera", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("talks", { keyPath: "tab" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

const inStore = (mode, run) =>
  new Promise((resolve, reject) => {
    const request = run(database.transaction("talks", mode).objectStore("talks"));
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

const readConversation = (id) => inStore("readonly", (store) => store.get(id));
const deleteConversation = (id) => inStore("readwrite", (store) => store.delete(id));

// A conversation can be continued if it has an answer of each of the current models.
const isUsable = (record) => record.turns.every((turn) => turn.answers.length === models.length);

// Returns the conversations that have a question, the last one first.
async function readHistory() {
  const records = await inStore("readonly", (store) => store.getAll());
  return records.filter((record) => record.turns.length && isUsable(record)).sort((one, other) => other.at - one.at);
}

function setConversation(id) {
  conversationId = id;
  if (database) sessionStorage.setItem("caldera.tab", id);
}

// Writes at most a few times per second, however fast an answer grows.
function save() {
  if (database && !saveTimer) saveTimer = setTimeout(saveNow, 200);
}

async function flush() {
  if (saveTimer) await saveNow();
}

async function saveNow() {
  cancelSave();
  const { turns, draft, draftImages, replacedDraft } = state;
  const record = { tab: conversationId, at: Date.now(), turns, draft, shown: draftImages, replacedDraft };
  otherTabs.postMessage(conversationId);
  await inStore("readwrite", (store) => store.put(record)).catch(() => notify("error", translate("no_store")));
}

function cancelSave() {
  clearTimeout(saveTimer);
  saveTimer = null;
}

// Shows a stored conversation; an empty one without a record.
function restore(id, record = { turns: [], draft: "", shown: [] }) {
  setConversation(id);
  const { turns, draft, shown, replacedDraft = null } = record;
  Object.assign(state, { turns, draft, draftImages: shown, replacedDraft, pendingId: null });
  for (const turn of turns)
    for (const answer of turn.answers)
      if (isRunning(answer)) answer.state = "interrupted";
}

async function start() {
  let language = null;
  try {
    language = localStorage.getItem("caldera.language");
    database = await openDatabase();
    const id = sessionStorage.getItem("caldera.tab");
    const stored = id ? await readConversation(id) : undefined;
    if (stored && isUsable(stored)) restore(id, stored);
    else restore(newId());
    for (const record of await inStore("readonly", (store) => store.getAll()))
      if (record.at < Date.now() - MAX_AGE) await deleteConversation(record.tab);
  } catch {
    database = null;
  }
  setLanguage(language || (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en"));
  if (!database) notify("error", translate("no_store"));
  watchServer();
  if (state.turns.length) scrollToEnd();
}
