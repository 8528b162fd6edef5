// What an answer looked at: a heat map over each image, for the whole answer or for one of its words.

function drawLook(answer, place, model) {
  const panel = make("div", { class: "look" });
  const opener = button("look", async () => {
    if (panel.childElementCount) {
      panel.replaceChildren();
      opener.textContent = say("look");
      return;
    }
    opener.disabled = true;
    opener.textContent = say("looking");
    const sent = { id: newId(), turns: sentTurns(talk.turns.slice(0, place + 1)) };
    const found = await call(() => server.looked({ model, sent }));
    opener.disabled = false;
    opener.textContent = say(found ? "look_close" : "look");
    if (found) drawFound(panel, found, imagesUpTo(place));
  }, { class: "looker" });
  return make("div", {}, opener, panel);
}

const imagesUpTo = (place) => talk.turns.slice(0, place + 1).flatMap((turn) => turn.images);

function drawFound(panel, found, urls) {
  const canvases = found.images.map((_, number) => make("canvas", { role: "img", "aria-label": `${say("image")} ${number + 1}` }));
  const maps = found.images.map((image) => Uint8Array.from(atob(image.heat), (letter) => letter.charCodeAt(0)));
  const images = urls.map((url) => Object.assign(new Image(), { src: url }));
  let chosen = null;
  const spans = found.words.map((text, word) => make("button", { type: "button", class: "word", onclick: () => choose(chosen === word ? null : word) }, text));
  const all = make("button", { type: "button", class: "all", onclick: () => choose(null) }, say("look_all"));

  async function choose(word) {
    chosen = word;
    all.classList.toggle("on", word === null);
    spans.forEach((span, place) => span.classList.toggle("on", place === word));
    for (const [number, image] of found.images.entries()) {
      await images[number].decode();
      paint(canvases[number], images[number], image, heatOf(maps[number], image, word, found.words.length));
    }
  }

  const share = found.images.reduce((sum, image) => sum + image.share, 0);
  panel.replaceChildren(
    make("div", { class: "words" }, all, ...spans),
    make("div", { class: "maps" }, ...canvases),
    make("p", { class: "small" }, say("look_note", { share: `${Math.round(100 * share)} %` })));
  choose(null);
}

// Weights of a word, or of all together, from 0 to 1.
function heatOf(map, image, word, count) {
  const cells = image.columns * image.rows;
  const heat = new Float32Array(cells);
  for (let each = 0; each < count; each += 1)
    if (word === null || each === word) for (let cell = 0; cell < cells; cell += 1) heat[cell] += map[each * cells + cell];
  const soft = softened(softened(heat, image), image);
  const largest = soft.reduce((most, value) => Math.max(most, value), 1e-9);
  return soft.map((value) => value / largest);
}

// Each cell's mean with its neighbours, so that the edges of patches are not taken for edges in the image.
function softened(heat, { columns, rows }) {
  return heat.map((_, cell) => {
    let sum = 0, count = 0;
    for (let row = Math.floor(cell / columns) - 1; row <= Math.floor(cell / columns) + 1; row += 1)
      for (let column = (cell % columns) - 1; column <= (cell % columns) + 1; column += 1)
        if (row >= 0 && row < rows && column >= 0 && column < columns) {
          sum += heat[row * columns + column];
          count += 1;
        }
    return sum / count;
  });
}

// Darkens an image where little attention went.
function paint(canvas, tag, image, heat) {
  const scale = Math.min(1, 640 / Math.max(tag.naturalWidth, tag.naturalHeight)) * Math.max(1, 320 / Math.max(tag.naturalWidth, tag.naturalHeight));
  canvas.width = Math.round(tag.naturalWidth * scale);
  canvas.height = Math.round(tag.naturalHeight * scale);
  const small = make("canvas", { width: image.columns, height: image.rows });
  const pixels = new ImageData(image.columns, image.rows);
  heat.forEach((value, cell) => pixels.data.set([12, 10, 30, Math.round(215 * (1 - value ** 0.65))], 4 * cell));
  small.getContext("2d").putImageData(pixels, 0, 0);
  const pen = canvas.getContext("2d");
  pen.drawImage(tag, 0, 0, canvas.width, canvas.height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(small, 0, 0, canvas.width, canvas.height);
}
