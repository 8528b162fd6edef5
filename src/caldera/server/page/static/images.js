// Images of the next question: selected, dropped, pasted or photographed; the server checks each before it is stored.

let numUploads = 0;

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
    // A file of unknown type is judged by the server, by its content.
    if (file.type && !file.type.startsWith("image/")) notify("error", translate("not_image", { name: file.name }));
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
    announce(translate("added", { count: state.draftImages.length }));
    notify(null);
  }
  drawAndSave();
  focusComposer();
}

function removeImage(index) {
  state.draftImages.splice(index, 1);
  drawAndSave();
}

function makeFileButton(name, capture) {
  const input = make("input", {
    type: "file",
    accept: "image/*",
    multiple: !capture,
    capture: capture && "environment",
    hidden: true,
    onchange: () => { addFiles([...input.files]); input.value = ""; },
  });
  return make("span", {}, button(name, () => input.click(), { class: name }), input);
}

function drawThumbnails() {
  const thumbnails = state.draftImages.map((url, index) => {
    const label = `${translate("remove")} ${index + 1}`;
    return make("span", { class: "thumb" },
      make("img", { src: url, alt: `${translate("image")} ${index + 1}` }),
      make("button", {
        type: "button",
        title: label,
        "aria-label": label,
        "data-key": `remove-${index}`,
        onclick: () => removeImage(index),
      }, "×"));
  });
  if (numUploads) thumbnails.push(make("span", { class: "thumb loading" }));
  return thumbnails;
}

for (const name of ["dragover", "dragleave", "drop"])
  document.addEventListener(name, (event) => {
    if (![...(event.dataTransfer?.types || [])].includes("Files")) return;
    event.preventDefault();
    root.classList.toggle("dropping", name === "dragover");
    if (name === "drop") addFiles([...event.dataTransfer.files]);
  });
