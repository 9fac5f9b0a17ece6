"use strict";
// The viewer. Every layer is one array on the volume's grid, so a section across any axis is cut out of it here.
const volumes = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const buttons = [...document.querySelectorAll("button[data-kind]")];
const AXES = ["z", "y", "x"], KINDS = ["raw", "prediction", "truth", "labels", "errors"];
const ARRAYS = {8: Uint8Array, 16: Uint16Array, 32: Uint32Array};
// split, merge, both, missed and invented, in the colours of the style
const COLOURS = [null, [232, 89, 12], [28, 126, 214], [192, 38, 211], [134, 142, 150], [224, 49, 49]];
const WORDS = ["", "split", "merge", "split and merge", "no label", "no truth"];
const state = {volume: 0, axis: 0, point: [0, 0, 0], zoom: 0, channel: 0, shown: new Set(KINDS), error: null};
let volume, layers; // of the volume on display: what the page says of it, and its unpacked layers by name

async function unpack(layer, width) {
  const bytes = Uint8Array.from(atob(layer.data), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const values = new ARRAYS[layer.bits](await new Response(stream).arrayBuffer());
  for (let start = 0; start < values.length; start += width)
    for (let i = start + 1; i < start + width; i++) values[i] += values[i - 1]; // stored are differences along x
  return {...layer, values, colours: layer.colours && Uint8Array.from(atob(layer.colours), (c) => c.charCodeAt(0))};
}

async function open(number) {
  const unpacked = await Promise.all(volumes[number].layers.map((layer) => unpack(layer, volumes[number].shape[2])));
  [volume, layers, state.volume] = [volumes[number], unpacked, number];
  state.point = volume.shape.map((length) => length >> 1);
  state.channel = 0;
  state.error = null;
  const channels = layers.filter((layer) => layer.kind === "prediction");
  find("channel").replaceChildren(...channels.map((layer, index) =>
    new Option(layer.name.replace("prediction", "").trim(), index)));
  find("channel-choice").hidden = channels.length < 2;
  const kinds = KINDS.filter((kind) => kind === "errors" ? volume.scored : of(kind));
  find("layers").replaceChildren(...kinds.map((kind) =>
    choice("checkbox", "layer", kind, state.shown.has(kind), (on) => toggle(kind, on))));
  find("panels").replaceChildren(...kinds.map(panel));
  find("legend").hidden = !volume.scored;
  const [z, y, x] = volume.step;
  const spans = volume.start.map((start, axis) =>
    `${AXES[axis]} ${start} to ${start + volume.step[axis] * volume.shape[axis]}`);
  find("extent").textContent = `Shown: ${spans.join(", ")} of ${volume.whole.join(" × ")} voxels of ` +
    `${volume.resolution.join(" × ")} ${volume.unit}; ` +
    (z * y * x === 1 ? "every voxel." : `one section of ${z}, in it one point for ${y} × ${x} voxels.`);
  turn(state.axis);
  openTree();
}

function of(kind) { return layers.filter((layer) => layer.kind === kind)[kind === "prediction" ? state.channel : 0]; }

function choice(type, group, name, on, changed) {
  const label = document.createElement("label"), input = document.createElement("input");
  Object.assign(input, {type, name: group, value: name, checked: on});
  input.addEventListener("change", () => changed(input.checked));
  label.append(input, " " + name);
  return label;
}

function panel(kind) {
  const [figure, caption, canvas] = ["figure", "figcaption", "canvas"].map((tag) => document.createElement(tag));
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  canvas.dataset.kind = kind;
  canvas.addEventListener("click", (event) => {
    const view = placed(canvas), [rows, columns] = planes();
    move(rows, Math.floor((event.offsetY * view.ratio - view.top) / view.rowHeight) - state.point[rows]);
    move(columns, Math.floor((event.offsetX * view.ratio - view.left) / view.columnWidth) - state.point[columns]);
  });
  figure.append(caption, canvas);
  return figure;
}

function planes() { return [0, 1, 2].filter((axis) => axis !== state.axis); } // rows, columns

// Where a section lies on a canvas: all of it in its right proportions, or zoomed in with the cross in the middle.
function placed(canvas) {
  const [rows, columns] = planes(), spacing = volume.step.map((step, axis) => step * volume.resolution[axis]);
  const tall = volume.shape[rows] * spacing[rows], wide = volume.shape[columns] * spacing[columns];
  const fit = Math.min(canvas.width / wide, canvas.height / tall) * 2 ** (state.zoom / 2);
  const start = (room, axis) => {
    const whole = volume.shape[axis] * spacing[axis] * fit, middle = (state.point[axis] + 0.5) * spacing[axis] * fit;
    return whole <= room + 1 ? (room - whole) / 2 : Math.min(0, Math.max(room - whole, room / 2 - middle));
  };
  return {tall, wide, rowHeight: spacing[rows] * fit, columnWidth: spacing[columns] * fit,
    ratio: canvas.width / canvas.clientWidth, top: start(canvas.height, rows), left: start(canvas.width, columns)};
}

function errorAt(truth, label) {
  if (truth === 0) return volume.detected && label ? 5 : 0;
  if (label === 0) return 4;
  return (volume.main_of_truth[truth] !== label ? 1 : 0) + (volume.main_of_labels[label] !== truth ? 2 : 0);
}

// The section as an image of one pixel a point: grey, and over it the colours of the labels or of the errors.
function section(kind) {
  const [rows, columns] = planes(), [, height, width] = volume.shape, strides = [height * width, width, 1];
  const image = new ImageData(volume.shape[columns], volume.shape[rows]), pixels = image.data;
  const grey = (of(kind === "prediction" ? kind : "raw") || {}).values, truth = of("truth"), labels = of("labels");
  const ids = kind === "truth" ? truth : kind === "labels" ? labels : null;
  const opacity = find("opacity").value / 100, error = state.error;
  const chosen = error && {truth: new Set(error.truth), labels: new Set(error.labels)};
  let pixel = 0;
  for (let row = 0; row < image.height; row++) {
    let index = state.point[state.axis] * strides[state.axis] + row * strides[rows];
    for (let column = 0; column < image.width; column++, index += strides[columns], pixel += 4) {
      const value = grey ? grey[index] : 40;
      let red = value, green = value, blue = value, weight = 0;
      if (ids && ids.values[index] && (!chosen || chosen[kind].has(ids.values[index]))) {
        const at = 3 * ids.values[index];
        [red, green, blue, weight] = [ids.colours[at], ids.colours[at + 1], ids.colours[at + 2], opacity];
      } else if (kind === "errors") {
        const t = truth.values[index], l = labels.values[index], colour = COLOURS[errorAt(t, l)];
        if (colour && (!chosen || (chosen.truth.has(t) && chosen.labels.has(l))))
          [red, green, blue, weight] = [...colour, opacity];
      }
      pixels[pixel] = value + (red - value) * weight;
      pixels[pixel + 1] = value + (green - value) * weight;
      pixels[pixel + 2] = value + (blue - value) * weight;
      pixels[pixel + 3] = 255;
    }
  }
  return image;
}

function draw() {
  if (!layers) return;
  const [rows, columns] = planes(), sheet = document.createElement("canvas");
  for (const figure of find("panels").children) {
    const canvas = figure.lastChild, kind = canvas.dataset.kind;
    figure.hidden = !state.shown.has(kind);
    if (figure.hidden) continue;
    figure.firstChild.textContent = kind === "prediction" ? of(kind).name : kind;
    canvas.setAttribute("aria-label", `${kind}, ${find("section-name").textContent}`);
    const ratio = window.devicePixelRatio || 1, spot = {...placed(canvas)};
    canvas.width = Math.round(canvas.clientWidth * ratio);
    canvas.height = Math.round(Math.min(canvas.width * spot.tall / spot.wide, window.innerHeight * 0.75 * ratio));
    const view = placed(canvas), image = section(kind), context = canvas.getContext("2d");
    [sheet.width, sheet.height] = [image.width, image.height];
    sheet.getContext("2d").putImageData(image, 0, 0);
    context.imageSmoothingEnabled = view.columnWidth < 3;
    context.drawImage(sheet, view.left, view.top, image.width * view.columnWidth, image.height * view.rowHeight);
    const x = view.left + (state.point[columns] + 0.5) * view.columnWidth;
    const y = view.top + (state.point[rows] + 0.5) * view.rowHeight;
    context.strokeStyle = "rgba(255, 255, 0, 0.8)";
    context.lineWidth = ratio;
    for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) { // a cross that is open in the middle
      context.beginPath();
      context.moveTo(x + dx * 5 * ratio, y + dy * 5 * ratio);
      context.lineTo(x + dx * 14 * ratio, y + dy * 14 * ratio);
      context.stroke();
    }
  }
  describe();
}

function voxel() {
  return volume.start.map((start, axis) => start + volume.step[axis] * state.point[axis] + (volume.step[axis] >> 1));
}

function describe() {
  const [z, y, x] = state.point, index = (z * volume.shape[1] + y) * volume.shape[2] + x;
  const parts = [`voxel ${voxel().map((at, axis) => `${AXES[axis]} ${at}`).join(", ")}`];
  for (const kind of KINDS) {
    const layer = kind === "errors" ? null : of(kind);
    if (!layer) continue;
    const value = layer.values[index];
    if (layer.ids) parts.push(`${kind} ${layer.ids[value]}`);
    else parts.push(`${kind} ${(layer.low + value / 255 * (layer.high - layer.low)).toPrecision(3)}`);
  }
  if (volume.scored) parts.push(WORDS[errorAt(of("truth").values[index], of("labels").values[index])]);
  find("readout").textContent = parts.filter(Boolean).join(" · ");
  explain();
}

function name() {
  const axis = AXES[state.axis], length = volume.shape[state.axis];
  const place = `(${axis} = ${voxel()[state.axis]})`;
  find("section-name").textContent = `Section ${state.point[state.axis] + 1} of ${length} ${place}`;
}

function move(axis, by) {
  state.point[axis] = Math.min(volume.shape[axis] - 1, Math.max(0, state.point[axis] + by));
  find("section").value = state.point[state.axis];
  name();
  schedule();
}

let waiting = false;
function schedule() { // one drawing a frame, however fast the keys come
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; draw(); });
}

function turn(axis) {
  state.axis = axis;
  for (const input of document.querySelectorAll("input[name=axis]")) input.checked = input.value === AXES[axis];
  find("section").max = volume.shape[axis] - 1;
  move(axis, 0);
}

function toggle(kind, on) {
  const box = document.querySelector(`input[name=layer][value=${kind}]`);
  if (!box) return;
  box.checked = on;
  state.shown[on ? "add" : "delete"](kind);
  schedule();
}

function set(id, value) { find(id).value = value; find(id).dispatchEvent(new Event("input")); }

async function show(button) {
  const number = Number(button.dataset.volume);
  if (number !== state.volume) { await open(number); find("volume").value = number; }
  state.error = volume.mistakes[button.dataset.kind][button.dataset.place];
  state.point = [...state.error.point];
  for (const other of buttons) other.setAttribute("aria-pressed", other === button);
  find("viewer").scrollIntoView();
  move(state.axis, 0);
}

function step(by) { // to the next or previous error of the tables
  const now = buttons.findIndex((button) => button.getAttribute("aria-pressed") === "true");
  const next = now < 0 && by < 0 ? buttons.length - 1 : (now + by + buttons.length) % buttons.length;
  if (buttons.length) show(buttons[next]);
}

function release() {
  state.error = null;
  for (const button of buttons) button.setAttribute("aria-pressed", false);
  schedule();
}

const ARROWS = {ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [1, -1], ArrowRight: [1, 1]};
const KEYS = {
  ",": () => move(state.axis, -1), ".": () => move(state.axis, 1),
  z: () => turn(0), y: () => turn(1), x: () => turn(2),
  c: () => set("channel", (state.channel + 1) % Math.max(1, find("channel").length)),
  "[": () => set("opacity", Number(find("opacity").value) - 15),
  "]": () => set("opacity", Number(find("opacity").value) + 15),
  "+": () => set("zoom", state.zoom + 1), "=": () => set("zoom", state.zoom + 1),
  "-": () => set("zoom", state.zoom - 1),
  n: () => step(1), p: () => step(-1), m: () => mark(), Escape: release,
};

function start() {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT" || !layers) return;
    const arrow = event.target.tagName === "CANVAS" && ARROWS[event.key], kind = KINDS[Number(event.key) - 1];
    if (arrow) { event.preventDefault(); move(planes()[arrow[0]], arrow[1]); }
    else if (KEYS[event.key]) KEYS[event.key]();
    else if (kind) toggle(kind, !state.shown.has(kind));
  });
  find("axes").append(...AXES.map((axis, number) => choice("radio", "axis", axis, number === 0, () => turn(number))));
  find("section").addEventListener("input", (event) =>
    move(state.axis, Number(event.target.value) - state.point[state.axis]));
  find("opacity").addEventListener("input", schedule);
  find("zoom").addEventListener("input", (event) => { state.zoom = Number(event.target.value); schedule(); });
  find("channel").addEventListener("input", (event) => { state.channel = Number(event.target.value); schedule(); });
  find("volume").addEventListener("input", (event) => { release(); open(Number(event.target.value)); });
  for (const button of buttons) button.addEventListener("click", () => show(button));
  window.addEventListener("resize", schedule);
  find("why").addEventListener("toggle", () => explain());
  find("mark").addEventListener("click", () => mark());
  const shown = volumes.map((entry, number) => number).filter((number) => volumes[number].layers.length);
  if (!shown.length) return;
  find("volume").replaceChildren(...shown.map((number) => new Option(volumes[number].name, number)));
  find("volume-choice").hidden = shown.length < 2;
  open(shown[0]).then(() => document.documentElement.dataset.ready = "yes",
    (error) => find("readout").textContent =
      `The sections cannot be unpacked (${error}): this page needs a browser of 2023 or later.`);
}
start();
