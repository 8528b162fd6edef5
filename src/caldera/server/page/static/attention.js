// Attention of an answer: a heatmap over each image, for the complete answer or for one of its words.

// Button and panel by answer: a redraw keeps them, another language needs new ones.
const attentionViews = new WeakMap();

function drawAttention(turnIndex, model) {
  const answer = state.turns[turnIndex].answers[model];
  const existing = attentionViews.get(answer);
  if (existing?.lang === document.documentElement.lang) return existing.nodes;
  const lang = document.documentElement.lang;
  const panel = make("div", { class: "attention" });
  const toggle = button("attention", () => togglePanel(), {
    class: "toggle-attention", "data-key": `attention-${turnIndex}-${model}`, "aria-expanded": "false",
  });
  attentionViews.set(answer, { lang, nodes: [toggle, panel] });

  function setOpen(isOpen) {
    toggle.textContent = toggle.title = translate(isOpen ? "attention_hide" : "attention");
    toggle.setAttribute("aria-expanded", isOpen);
    if (!isOpen) panel.replaceChildren();
  }

  async function togglePanel() {
    if (toggle.ariaBusy === "true") return;
    if (panel.childElementCount) return setOpen(false);
    toggle.ariaBusy = "true";
    toggle.textContent = translate("attention_loading");
    const turns = state.turns.slice(0, turnIndex + 1);
    const conversation = { id: newId(), turns: turnPayloads(turns) };
    const maps = await call(() => server.attention_maps({ model, conversation }));
    toggle.ariaBusy = "false";
    setOpen(maps !== null);
    if (!maps) return;
    await drawMaps(panel, maps, turns.flatMap((turn) => turn.images));
    panel.scrollIntoView({ block: "nearest", behavior: scrollBehavior() });
  }

  return [toggle, panel];
}

async function drawMaps(panel, maps, urls) {
  const canvases = maps.images.map(() => make("canvas", { role: "img" }));
  const images = urls.map((url) => Object.assign(new Image(), { src: url }));
  const nodes = maps.words.map((text, index) => makeWord(text, () => select(selected === index ? null : index)));
  const all = make("button", { type: "button", class: "all", onclick: () => select(null) }, translate("attention_all"));
  let selected = null;

  async function select(word) {
    selected = word;
    [all, ...nodes].forEach((node, index) => {
      if (node.tagName === "BUTTON") node.setAttribute("aria-pressed", index - 1 === (word ?? -1));
    });
    for (const [index, map] of maps.images.entries()) {
      await images[index].decode();
      paint(canvases[index], images[index], map, heatmapOf(map, word, maps.words.length));
      const words = word === null ? translate("attention_all") : maps.words[word].trim();
      canvases[index].ariaLabel = translate("attention_map", { index: index + 1, words });
    }
  }

  const fraction = maps.images.reduce((sum, map) => sum + map.attention_fraction, 0);
  panel.replaceChildren(
    make("div", { class: "words" }, all, ...nodes.flatMap((node, index) => [spaceBefore(maps.words[index]), node])),
    make("div", { class: canvases.length > 1 ? "maps several" : "maps" }, ...canvases),
    make("p", { class: "small" }, translate("attention_note", { fraction: `${Math.round(100 * fraction)} %` })));
  await select(null);
}

// White space is outside of the buttons; alone, nobody could see or name it.
const makeWord = (text, onclick) =>
  text.trim() ? make("button", { type: "button", class: "word", onclick }, text.trim()) : make("span");
const spaceBefore = (word) => (word.trimStart() === word ? "" : " ");

// Weights of one word, or of all words together, scaled to a maximum of 1.
function heatmapOf(map, selected, numWords) {
  const numCells = map.columns * map.rows;
  const levels = bytesOf(map.heatmaps);
  const heatmap = new Float32Array(numCells);
  for (let word = 0; word < numWords; word += 1)
    if (selected === null || word === selected)
      for (let cell = 0; cell < numCells; cell += 1) heatmap[cell] += levels[word * numCells + cell];
  const smoothed = smooth(smooth(heatmap, map), map);
  const maximum = smoothed.reduce((largest, value) => Math.max(largest, value), 1e-9);
  return smoothed.map((value) => value / maximum);
}

// Averages each cell with its neighbors, so that the edges of patches are not mistaken for edges in the image.
function smooth(heatmap, { columns, rows }) {
  return heatmap.map((_, cell) => {
    const cellRow = Math.floor(cell / columns), cellColumn = cell % columns;
    let sum = 0, count = 0;
    for (let row = cellRow - 1; row <= cellRow + 1; row += 1)
      for (let column = cellColumn - 1; column <= cellColumn + 1; column += 1)
        if (row >= 0 && row < rows && column >= 0 && column < columns) {
          sum += heatmap[row * columns + column];
          count += 1;
        }
    return sum / count;
  });
}

// Draws an image that is darkened where the weights are small.
function paint(canvas, image, map, heatmap) {
  const side = Math.max(image.naturalWidth, image.naturalHeight);
  const scale = Math.min(1, 640 / side) * Math.max(1, 320 / side);
  canvas.width = Math.round(image.naturalWidth * scale);
  canvas.height = Math.round(image.naturalHeight * scale);
  const overlay = make("canvas", { width: map.columns, height: map.rows });
  const pixels = new ImageData(map.columns, map.rows);
  heatmap.forEach((value, cell) => pixels.data.set([12, 10, 30, Math.round(215 * (1 - value ** 0.65))], 4 * cell));
  overlay.getContext("2d").putImageData(pixels, 0, 0);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(overlay, 0, 0, canvas.width, canvas.height);
}
