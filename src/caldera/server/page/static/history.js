// List of the conversations that this browser has stored.

const dialog = make("dialog", { "aria-labelledby": "history-title" });

async function openHistory() {
  await flush();
  await drawHistory();
  dialog.showModal();
}

async function drawHistory() {
  const records = await readHistory();
  dialog.replaceChildren(
    make("div", { class: "row" },
      make("h2", { id: "history-title" }, translate("history")),
      button("close", () => dialog.close())),
    make("p", { class: "small" }, translate(records.length ? "history_note" : "history_empty")),
    make("ul", {}, ...records.map(drawHistoryEntry)),
    records.length ? button("delete_all", () => deleteAll(records), { class: "delete-all" }) : null);
}

function drawHistoryEntry(record, index) {
  const [{ question }] = record.turns;
  const [image] = record.turns.flatMap((turn) => turn.images);
  const time = new Intl.DateTimeFormat(document.documentElement.lang, { dateStyle: "medium", timeStyle: "short" });
  const isOpen = record.tab === conversationId;
  const remove = `${translate("delete")}: ${question}`;
  return make("li", {},
    make("button", {
      type: "button", class: "open", "data-key": `open-${index}`, "aria-current": isOpen && "true",
      onclick: () => openConversation(record.tab),
    },
      image ? make("img", { src: image, alt: "" }) : make("span", { class: "no-thumb" }),
      make("span", { class: "about" },
        make("span", { class: "question-text" }, question),
        make("span", { class: "small" },
          [time.format(record.at), translate("questions", { count: record.turns.length }), isOpen ? translate("open") : null]
            .filter(Boolean).join(" · ")))),
    button("delete", () => deleteFromHistory([record]), { title: remove, "aria-label": remove }));
}

async function openConversation(id) {
  await leaveConversation();
  restore(id, await readConversation(id));
  dialog.close();
  draw();
  scrollToEnd();
  focusComposer();
}

async function startConversation() {
  await leaveConversation();
  restore(newId());
  draw();
  focusComposer();
}

async function leaveConversation() {
  stop();
  notify(null);
  await flush();
}

async function deleteFromHistory(records) {
  for (const { tab } of records) {
    if (tab === conversationId) {
      stop();
      cancelSave();
      restore(newId());
      draw();
    }
    await deleteConversation(tab);
  }
  await drawHistory();
  dialog.querySelector("button").focus();
}

function deleteAll(records) {
  if (confirm(translate("delete_all_question", { count: records.length }))) deleteFromHistory(records);
}
