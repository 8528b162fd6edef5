// A conversation is kept in this browser, under a name that belongs to the tab, so that a reload finds it again. Those
// that no tab has opened for a week are forgotten.

const WEEK = 7 * 24 * 3600 * 1000;
let tab = null, store = null, keeping = null;

const opened = () =>
  new Promise((give, fail) => {
    const request = indexedDB.open("caldera", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("talks", { keyPath: "tab" });
    request.onsuccess = () => give(request.result);
    request.onerror = () => fail(request.error);
  });

const done = (request) =>
  new Promise((give, fail) => {
    request.onsuccess = () => give(request.result);
    request.onerror = () => fail(request.error);
  });

const talks = (mode) => store.transaction("talks", mode).objectStore("talks");

// Writes at most a few times a second, however fast an answer grows.
function keep() {
  if (!store || keeping) return;
  keeping = setTimeout(() => {
    keeping = null;
    const { turns, draft, shown } = talk;
    done(talks("readwrite").put({ tab, at: Date.now(), turns, draft, shown })).catch(() => notify("error", say("no_store")));
  }, 200);
}

async function begin() {
  let chosen = null;
  try {
    chosen = localStorage.getItem("caldera.language");
    tab = sessionStorage.getItem("caldera.tab") || newId();
    sessionStorage.setItem("caldera.tab", tab);
    store = await opened();
    const kept = await done(talks("readonly").get(tab));
    if (kept) Object.assign(talk, { turns: kept.turns.filter(fits), draft: kept.draft, shown: kept.shown });
    for (const old of await done(talks("readonly").getAll()))
      if (old.at < Date.now() - WEEK) await done(talks("readwrite").delete(old.tab));
  } catch {
    store = null;
  }
  for (const turn of talk.turns)
    for (const answer of turn.answers)
      if (["waiting", "writing"].includes(answer.state)) answer.state = "interrupted";
  setLanguage(chosen || (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en"));
  if (!store) notify("error", say("no_store"));
  watchServer();
  if (talk.turns.length) toEnd();
}

// Whether a kept turn is of as many models as there are now.
const fits = (turn) => turn.answers.length === models.length;
