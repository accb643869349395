// The page of the service: what is chosen here becomes one request to /v1/pairs. Nothing is stored, nothing fetched from elsewhere.
"use strict";

const $ = (id) => document.getElementById(id);
const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value;
let token = "";      // in memory alone
let lastWish = null; // what the pairs that are shown came from
let models = [];

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

async function ask(path, body, accept = "application/json") {
  const options = { headers: { accept } };
  if (token) options.headers.authorization = `Bearer ${token}`;
  if (body) {
    options.method = "POST";
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const answer = await fetch(path, options);
  if (answer.ok) return answer;
  let told = { error: `${answer.status} ${answer.statusText}`, where: [] };
  try { told = await answer.json(); } catch { /* no JSON: the status says it */ }
  const wait = answer.headers.get("retry-after");
  const where = told.where && told.where.length ? ` (${told.where.filter((part) => part !== "body").join(".")})` : "";
  throw new Error(`${told.error}${where}${wait ? ` Try again in ${wait} s.` : ""}`);
}

// A photo on a canvas, and what is drawn over it: a shape by brush, or a region by dragging.
class Drawing {
  constructor(name, dragged) {
    this.canvas = $(`${name}-canvas`);
    this.brush = $(`${name}-brush`);
    this.mask = document.createElement("canvas");
    this.dragged = dragged; // null, or a function that is told the region
    this.file = null;
    $(name).addEventListener("change", (event) => this.open(event.target.files[0]));
    $(`${name}-mask`).addEventListener("click", (event) => { event.target.value = ""; }); // the same file can be chosen again
    $(`${name}-mask`).addEventListener("change", (event) => this.take(event.target.files[0]));
    $(`${name}-clear`).addEventListener("click", () => { this.wipe(); this.show(); });
    this.canvas.addEventListener("pointerdown", (event) => this.down(event));
    this.canvas.addEventListener("pointermove", (event) => this.move(event));
    this.canvas.addEventListener("pointerup", () => { this.from = null; });
  }

  async open(file) {
    if (!file) return;
    try { this.photo = await createImageBitmap(file); } catch { say("This file is no picture that can be shown.", true); return; }
    this.file = file;
    for (const canvas of [this.canvas, this.mask]) { canvas.width = this.photo.width; canvas.height = this.photo.height; }
    this.canvas.hidden = false;
    this.wipe();
    this.show();
  }

  // A mask as a file, in place of what a pointer would paint: what is light in it is wanted.
  async take(file) {
    if (!file) return;
    if (!this.file) { say("Choose the photo first, then its mask.", true); return; }
    let found;
    try { found = await createImageBitmap(file); } catch { say("This file is no picture that can be shown.", true); return; }
    const { width, height } = this.mask;
    if (found.width !== width || found.height !== height) {
      say(`The mask is ${found.width} x ${found.height}, the photo ${width} x ${height}: both must be equal.`, true);
      return;
    }
    this.wipe();
    const pen = this.mask.getContext("2d");
    pen.drawImage(found, 0, 0);
    const pixels = pen.getImageData(0, 0, width, height);
    for (let i = 0; i < pixels.data.length; i += 4) {
      const light = Math.max(pixels.data[i], pixels.data[i + 1], pixels.data[i + 2]);
      pixels.data[i + 3] = light > 127 && pixels.data[i + 3] > 127 ? 255 : 0;
      pixels.data.fill(255, i, i + 3);
    }
    pen.putImageData(pixels, 0, 0);
    if (!this.drawn()) say("Nothing in this mask is light: what is wanted is white in it.", true);
    this.show();
  }

  wipe() { this.mask.getContext("2d").clearRect(0, 0, this.mask.width, this.mask.height); this.region = null; }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width * this.canvas.width, (event.clientY - box.top) / box.height * this.canvas.height];
  }

  down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.from = this.last = this.at(event);
    this.move(event);
  }

  move(event) {
    if (!this.from) return;
    const [x, y] = this.at(event);
    if (this.dragged && chosen("where") === "region") {
      const clip = (value, most) => Math.round(Math.min(Math.max(value, 0), most));
      this.region = {
        left: clip(Math.min(this.from[0], x), this.canvas.width), top: clip(Math.min(this.from[1], y), this.canvas.height),
        right: clip(Math.max(this.from[0], x), this.canvas.width), bottom: clip(Math.max(this.from[1], y), this.canvas.height),
      };
      this.dragged(this.region);
    } else {
      const pen = this.mask.getContext("2d");
      pen.strokeStyle = "#fff";
      pen.lineWidth = Number(this.brush.value) * this.canvas.width / 400;
      pen.lineCap = pen.lineJoin = "round";
      pen.beginPath(); pen.moveTo(...this.last); pen.lineTo(x + 0.01, y); pen.stroke();
      this.last = [x, y];
    }
    this.show();
  }

  show() {
    if (!this.photo) return;
    const pen = this.canvas.getContext("2d");
    pen.drawImage(this.photo, 0, 0);
    if (this.region && chosen("where") === "region") {
      const { left, top, right, bottom } = this.region;
      pen.strokeStyle = "#00e5ff"; pen.lineWidth = Math.max(2, this.canvas.width / 200);
      pen.strokeRect(left, top, right - left, bottom - top);
    } else {
      pen.globalAlpha = 0.55; pen.drawImage(this.mask, 0, 0); pen.globalAlpha = 1;
    }
  }

  drawn() { return this.mask.getContext("2d").getImageData(0, 0, this.mask.width, this.mask.height).data.some((v, i) => i % 4 === 3 && v > 127); }

  async photoSent() { return base64(new Uint8Array(await this.file.arrayBuffer())); }

  async maskSent() {
    const flat = document.createElement("canvas");
    flat.width = this.mask.width; flat.height = this.mask.height;
    const pen = flat.getContext("2d");
    pen.fillRect(0, 0, flat.width, flat.height);
    pen.drawImage(this.mask, 0, 0);
    const blob = await new Promise((done) => flat.toBlob(done, "image/png"));
    return base64(new Uint8Array(await blob.arrayBuffer()));
  }
}

function base64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}

const reference = new Drawing("reference", null);
const background = new Drawing("background", (region) => { for (const side of ["left", "top", "right", "bottom"]) $(side).value = region[side]; });
for (const side of ["left", "top", "right", "bottom"]) {
  $(side).addEventListener("input", () => {
    background.region = Object.fromEntries(["left", "top", "right", "bottom"].map((name) => [name, Number($(name).value)]));
    background.show();
  });
}

function arrange() {
  $("own").hidden = chosen("what") !== "own";
  $("type").disabled = chosen("what") === "own";
  const where = chosen("where");
  $("mine").hidden = where === "run";
  $("region").hidden = where !== "region";
  $("background-tools").hidden = where !== "mask";
  $("hint").textContent = where === "region" ? "Drag a box where the target is to be, or give its sides." : "Paint the shape of the new target.";
  background.show();
}
document.querySelectorAll("input[type=radio]").forEach((radio) => radio.addEventListener("change", arrange));
for (const name of ["safe", "start"]) {
  $(name).addEventListener("input", () => { $(`${name}-told`).value = Number($(name).value).toFixed(2); });
}

async function connect(event) {
  event.preventDefault();
  token = $("token").value;
  try {
    models = await (await ask("v1/models")).json();
    $("model").replaceChildren(...models.map((model) => new Option(model.model, model.model)));
    await changeModel();
    $("studio").hidden = false;
    $("token").value = "";
    say("Connected. Choose what is wanted, where, and how.");
  } catch (error) { say(error.message, true); }
}

async function changeModel() {
  const model = models.find((one) => one.model === $("model").value);
  const types = await (await ask(`v1/types?model=${encodeURIComponent(model.model)}`)).json();
  $("type").replaceChildren(...types.map((t) => new Option(`${t.category} / ${t.type} (${t.targets})`, JSON.stringify([t.category, t.type]))));
  for (const [name, value] of [["safe", model.strengths.safe_strength], ["start", model.strengths.start_strength]]) {
    $(name).value = value;
    $(name).dispatchEvent(new Event("input"));
  }
  offset = 0;
  await showKept();
}

async function wish() {
  const out = {
    model: $("model").value, n: Number($("n").value), seed: Number($("seed").value),
    strengths: { safe_strength: Number($("safe").value), start_strength: Number($("start").value) },
  };
  if ($("mode").value) out.mode = $("mode").value;
  const [category, type] = JSON.parse($("type").value);
  out.category = category;
  if (chosen("what") === "type") out.type = type;
  else {
    if (!reference.file || !reference.drawn()) throw new Error("Choose a photo of your target and paint over it first.");
    out.reference = { image: await reference.photoSent(), mask: await reference.maskSent() };
  }
  if (chosen("where") !== "run") {
    if (!background.file) throw new Error("Choose a photo to paint on first.");
    out.background = await background.photoSent();
    if (chosen("where") === "region") {
      if (!background.region) throw new Error("Drag a box where the target is to be first.");
      out.region = background.region;
    } else {
      if (!background.drawn()) throw new Error("Paint the shape of the new target first.");
      out.mask = await background.maskSent();
    }
  }
  return out;
}

async function make(event) {
  event.preventDefault();
  $("make").disabled = true;
  say("Making pairs ...");
  const began = performance.now();
  try {
    const wanted = await wish();
    const { pairs } = await (await ask("v1/pairs", wanted)).json();
    lastWish = wanted; // before the figures: each remembers what it came of
    $("results").replaceChildren(...await Promise.all(pairs.map(figure)));
    $("zip").disabled = false;
    say(`${pairs.length} pairs in ${((performance.now() - began) / 1000).toFixed(1)} s, ${pairs.filter((pair) => pair.valid).length} of them valid.`);
  } catch (error) { say(error.message, true); }
  $("make").disabled = false;
}

// A photo with the outline of its mask, which can be taken off. No larger than is looked at: the links lead to the whole.
const SIDE = 1024;
const drawers = new WeakMap(); // by canvas: what goes with a figure is freed with it
$("contour").addEventListener("change", () => document.querySelectorAll("figure canvas").forEach((canvas) => drawers.get(canvas)?.()));

function outlined(image, mask, label) {
  const scale = Math.min(1, SIDE / Math.max(image.width, image.height));
  const photo = shrunk(image, scale), outline = contour(shrunk(mask, scale));
  const canvas = document.createElement("canvas");
  canvas.width = photo.width; canvas.height = photo.height;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  const draw = () => {
    const pen = canvas.getContext("2d");
    pen.drawImage(photo, 0, 0);
    if ($("contour").checked) pen.drawImage(outline, 0, 0);
  };
  draw();
  drawers.set(canvas, draw);
  return canvas;
}

// A picture on a canvas of its own; the decoded whole is freed.
function shrunk(picture, scale) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(picture.width * scale)); canvas.height = Math.max(1, Math.round(picture.height * scale));
  const pen = canvas.getContext("2d");
  pen.imageSmoothingQuality = "high"; // a crack of one pixel stays, if faint
  pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  picture.close();
  return canvas;
}

async function figure(pair, number) {
  const canvas = outlined(await bitmap(pair.image), await bitmap(pair.mask), `${pair.category} ${pair.type}, pair ${number + 1}`);
  const caption = document.createElement("figcaption");
  const verdict = document.createElement("span");
  verdict.className = pair.valid ? "verdict" : "verdict turned-away";
  verdict.textContent = pair.valid ? "valid" : pair.reason;
  const about = document.createElement("div");
  about.textContent = `${pair.type} · label IoU ${(pair.measures.label_iou ?? 0).toFixed(2)} · ${pair.task_id.slice(0, 8)}`;
  const links = document.createElement("div");
  for (const [name, data] of [["image", pair.image], ["mask", pair.mask]]) {
    const link = document.createElement("a");
    link.href = `data:image/png;base64,${data}`;
    link.download = `${pair.task_id}${name === "mask" ? "_mask" : ""}.png`;
    link.textContent = name;
    links.append(link);
  }
  const keep = document.createElement("button");
  keep.type = "button";
  keep.textContent = "Train on it";
  const made = lastWish;
  keep.addEventListener("click", async () => {
    keep.disabled = true;
    if (await judged({ task_id: pair.task_id, accepted: true, made })) {
      keep.textContent = "Accepted";
      await showKept();
    } else keep.disabled = false;
  });
  caption.append(verdict, about, links, keep);
  const out = document.createElement("figure");
  out.append(canvas, caption);
  return out;
}

async function bitmap(data) { return createImageBitmap(await (await fetch(`data:image/png;base64,${data}`)).blob()); }

// The border of a mask, one colour that no photo has much of.
function contour(mask) {
  const canvas = document.createElement("canvas");
  const { width, height } = mask;
  canvas.width = width; canvas.height = height;
  const pen = canvas.getContext("2d");
  pen.drawImage(mask, 0, 0);
  const pixels = pen.getImageData(0, 0, width, height), inside = (x, y) =>
    x >= 0 && y >= 0 && x < width && y < height && source[4 * (y * width + x)] > 0;
  const source = pixels.data.slice();
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
    const edge = inside(x, y) && !(inside(x - 1, y) && inside(x + 1, y) && inside(x, y - 1) && inside(x, y + 1));
    pixels.data.set(edge ? [255, 0, 200, 255] : [0, 0, 0, 0], 4 * (y * width + x));
  }
  pen.putImageData(pixels, 0, 0);
  return canvas;
}

async function download() {
  try {
    const blob = await (await ask("v1/pairs", lastWish, "application/zip")).blob();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = "pairs.zip";
    link.click();
    URL.revokeObjectURL(link.href);
  } catch (error) { say(error.message, true); }
}

const SHOWN = 12;
let offset = 0;

async function showKept() {
  const model = encodeURIComponent($("model").value);
  const { total, pairs } = await (await ask(`v1/kept?model=${model}&offset=${offset}&limit=${SHOWN}`)).json();
  $("kept-told").textContent = total ? `${offset + 1} to ${offset + pairs.length} of ${total}` : "none yet";
  $("earlier").disabled = offset === 0;
  $("later").disabled = offset + pairs.length >= total;
  $("kept").replaceChildren(...await Promise.all(pairs.map(async (pair) => {
    const [image, mask] = await Promise.all(["image", "mask"].map(async (part) =>
      createImageBitmap(await (await ask(`v1/kept/${pair.task_id}/${part}?model=${model}`, null, "image/png")).blob())));
    return keptFigure(pair, outlined(image, mask, `${pair.category} ${pair.type}, kept in round ${pair.round}`));
  })));
}

// Writes a person's word on a pair; whether that worked.
async function judged(word) {
  const reviewer = $("reviewer").value.trim();
  if (!reviewer) { say("Give the reviewer's name first.", true); $("reviewer").focus(); return false; }
  try {
    const model = word.made ? word.made.model : $("model").value;
    await ask("v1/verdicts", { ...word, reviewer, model });
    say(`Pair ${word.task_id.slice(0, 8)} is ${word.accepted ? "accepted" : "rejected"}.`);
    return true;
  } catch (error) { say(error.message, true); return false; }
}

function keptFigure(pair, canvas) {
  const out = document.createElement("figure"), caption = document.createElement("figcaption");
  const verdict = document.createElement("div");
  const told = (word) => {
    verdict.textContent = word || "not judged";
    verdict.className = word === "rejected" ? "verdict turned-away" : "verdict";
  };
  told(pair.verdict);
  const about = document.createElement("div");
  about.textContent = `${pair.category} / ${pair.type} · ${pair.human ? "made by hand, for" : ""} round ${pair.round} · ${pair.task_id.slice(0, 8)}`;
  caption.append(verdict, about);
  for (const accepted of [true, false]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = accepted ? "Accept" : "Reject";
    button.addEventListener("click", async () => {
      if (await judged({ task_id: pair.task_id, accepted })) told(accepted ? "accepted" : "rejected");
    });
    caption.append(button);
  }
  out.append(canvas, caption);
  return out;
}

function turn(by) {
  offset = Math.max(0, offset + by);
  showKept().catch((error) => say(error.message, true));
}

$("earlier").addEventListener("click", () => turn(-SHOWN));
$("later").addEventListener("click", () => turn(SHOWN));
$("door").addEventListener("submit", connect);
$("wish").addEventListener("submit", make);
$("model").addEventListener("change", () => changeModel().catch((error) => say(error.message, true)));
$("zip").addEventListener("click", download);
arrange();
