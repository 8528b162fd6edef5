// Stores the conversation in this browser under an id of the tab, so that a reload restores it. Conversations that no
// tab has opened for a week are deleted. Names in the database are those of the first version, so that it still opens:
// `talks` are conversations, `at` is the time of the last change, `shown` the images of the draft.

const WEEK = 7 * 24 * 3600 * 1000;
let tab = null, database = null, saveTimer = null;

const openDatabase = () =>
  new Promise((resolve, reject) => {
    const request = indexedDB.open("caldera", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("talks", { keyPath: "tab" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

const awaitRequest = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

const objectStore = (mode) => database.transaction("talks", mode).objectStore("talks");

// Writes at most a few times per second, however fast an answer grows.
function save() {
  if (!database || saveTimer) return;
  saveTimer = setTimeout(() => {
    saveTimer = null;
    const { turns, draft, draftImages } = state;
    const record = { tab, at: Date.now(), turns, draft, shown: draftImages };
    awaitRequest(objectStore("readwrite").put(record)).catch(() => notify("error", translate("no_store")));
  }, 200);
}

async function start() {
  let language = null;
  try {
    language = localStorage.getItem("caldera.language");
    tab = sessionStorage.getItem("caldera.tab") || newId();
    sessionStorage.setItem("caldera.tab", tab);
    database = await openDatabase();
    const stored = await awaitRequest(objectStore("readonly").get(tab));
    // A turn is restored if it has an answer for each of the current models.
    if (stored)
      Object.assign(state, {
        turns: stored.turns.filter((turn) => turn.answers.length === models.length),
        draft: stored.draft,
        draftImages: stored.shown,
      });
    for (const record of await awaitRequest(objectStore("readonly").getAll()))
      if (record.at < Date.now() - WEEK) await awaitRequest(objectStore("readwrite").delete(record.tab));
  } catch {
    database = null;
  }
  for (const turn of state.turns)
    for (const answer of turn.answers)
      if (isRunning(answer)) answer.state = "interrupted";
  setLanguage(language || (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en"));
  if (!database) notify("error", translate("no_store"));
  watchServer();
  if (state.turns.length) scrollToEnd();
}
