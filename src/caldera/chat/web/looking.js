// What an answer looked at: a heat map over each picture, for the whole answer or for one of its words.

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
    if (found) drawFound(panel, found, picturesUpTo(place));
  }, { class: "looker" });
  return make("div", {}, opener, panel);
}

const picturesUpTo = (place) => talk.turns.slice(0, place + 1).flatMap((turn) => turn.pictures);

function drawFound(panel, found, urls) {
  const canvases = found.pictures.map((_, number) => make("canvas", { role: "img", "aria-label": `${say("picture")} ${number + 1}` }));
  const maps = found.pictures.map((picture) => Uint8Array.from(atob(picture.heat), (letter) => letter.charCodeAt(0)));
  const images = urls.map((url) => Object.assign(new Image(), { src: url }));
  let chosen = null;
  const spans = found.words.map((text, word) => make("button", { type: "button", class: "word", onclick: () => choose(chosen === word ? null : word) }, text));
  const all = make("button", { type: "button", class: "all", onclick: () => choose(null) }, say("look_all"));

  async function choose(word) {
    chosen = word;
    all.classList.toggle("on", word === null);
    spans.forEach((span, place) => span.classList.toggle("on", place === word));
    for (const [number, picture] of found.pictures.entries()) {
      await images[number].decode();
      paint(canvases[number], images[number], picture, heatOf(maps[number], picture, word, found.words.length));
    }
  }

  const share = found.pictures.reduce((sum, picture) => sum + picture.share, 0);
  panel.replaceChildren(
    make("div", { class: "words" }, all, ...spans),
    make("div", { class: "maps" }, ...canvases),
    make("p", { class: "small" }, say("look_note", { share: `${Math.round(100 * share)} %` })));
  choose(null);
}

// Weights of a word, or of all together, from 0 to 1.
function heatOf(map, picture, word, count) {
  const cells = picture.columns * picture.rows;
  const heat = new Float32Array(cells);
  for (let each = 0; each < count; each += 1)
    if (word === null || each === word) for (let cell = 0; cell < cells; cell += 1) heat[cell] += map[each * cells + cell];
  const soft = softened(softened(heat, picture), picture);
  const largest = soft.reduce((most, value) => Math.max(most, value), 1e-9);
  return soft.map((value) => value / largest);
}

// Each cell's mean with its neighbours, so that the edges of patches are not taken for edges in the picture.
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

// Darkens a picture where little attention went.
function paint(canvas, image, picture, heat) {
  const scale = Math.min(1, 640 / Math.max(image.naturalWidth, image.naturalHeight)) * Math.max(1, 320 / Math.max(image.naturalWidth, image.naturalHeight));
  canvas.width = Math.round(image.naturalWidth * scale);
  canvas.height = Math.round(image.naturalHeight * scale);
  const small = make("canvas", { width: picture.columns, height: picture.rows });
  const pixels = new ImageData(picture.columns, picture.rows);
  heat.forEach((value, cell) => pixels.data.set([12, 10, 30, Math.round(215 * (1 - value ** 0.65))], 4 * cell));
  small.getContext("2d").putImageData(pixels, 0, 0);
  const pen = canvas.getContext("2d");
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(small, 0, 0, canvas.width, canvas.height);
}
