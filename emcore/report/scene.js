"use strict";
// The page of neurons in 3-d: how the mouse, fingers and keys move it, what a click picks, and the list. What is drawn
// and how stands in scene_drawing.js, which comes first in the page.

// ---- moving

function fit() { // All that is listed becomes as large as it fits.
  const corners = neurons.length ? neurons.flatMap(cornersOf) : [data.half, data.half.map((value) => -value)];
  const seen = corners.map((corner) => turned(view.turn, corner));
  const spans = [0, 1, 2].map((axis) => seen.map((place) => place[axis])).map((values) =>
    [Math.min(...values), Math.max(...values)]);
  const middle = spans.map(([low, high]) => (low + high) / 2);
  view.middle = [0, 1, 2].map((axis) => dot(middle, [view.turn[axis], view.turn[3 + axis], view.turn[6 + axis]]));
  view.zoom = 0.88 * Math.min(canvas.clientWidth / (spans[0][1] - spans[0][0]),
    canvas.clientHeight / (spans[1][1] - spans[1][0]));
  schedule();
}

function cornersOf(neuron) {
  return [...Array(8).keys()].map((bits) => neuron.low.map((low, axis) =>
    low + (bits >> axis & 1 ? 65535 * neuron.step[axis] : 0)));
}

function look(turn) { view.turn = turn; fit(); }

function turnBy(right, down) { // Both are pixels of the mouse, which what is near follows.
  view.turn = upright(times(about(0, down / 150), times(about(1, -right / 150), view.turn)));
  schedule();
}

function moveBy(right, down) {
  for (const axis of [0, 1, 2])
    view.middle[axis] -= (right * view.turn[axis] + down * view.turn[3 + axis]) / view.zoom;
  schedule();
}

function zoomBy(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) { // What is at x, y stays there.
  const [right, down] = [x - canvas.clientWidth / 2, y - canvas.clientHeight / 2];
  moveBy(-right, -down);
  view.zoom = Math.min(100, Math.max(1e-6, view.zoom * factor));
  moveBy(right, down);
}

// ---- picking and the list

function pickedAt(x, y) { // The number of what is drawn there, neurons first; null is nothing.
  const ratio = window.devicePixelRatio || 1, [width, height] = [canvas.width, canvas.height];
  const [colours, depths] = [gl.createRenderbuffer(), gl.createRenderbuffer()];
  gl.bindFramebuffer(gl.FRAMEBUFFER, picking);
  for (const [made, kind, where] of [[colours, gl.RGBA8, gl.COLOR_ATTACHMENT0],
    [depths, gl.DEPTH_COMPONENT24, gl.DEPTH_ATTACHMENT]]) {
    gl.bindRenderbuffer(gl.RENDERBUFFER, made);
    gl.renderbufferStorage(gl.RENDERBUFFER, kind, width, height);
    gl.framebufferRenderbuffer(gl.FRAMEBUFFER, where, gl.RENDERBUFFER, made);
  }
  clear();
  const code = (place) => [0, 8, 16].map((shift) => ((place + 1 >> shift) & 255) / 255);
  drawSurfaces((neuron, place) => code(place), 1, [0, 0, 0]);
  if (find("synapses").checked)
    drawBalls(ballRows((place) => [code(neurons.length + place), code(neurons.length + place)]), 1);
  const pixel = new Uint8Array(4);
  gl.readPixels(Math.floor(x * ratio), height - 1 - Math.floor(y * ratio), 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
  gl.bindFramebuffer(gl.FRAMEBUFFER, null);
  gl.deleteRenderbuffer(colours);
  gl.deleteRenderbuffer(depths);
  const found = pixel[0] + 256 * pixel[1] + 65536 * pixel[2];
  return found ? found - 1 : null;
}

function pick(found) {
  view.synapse = found !== null && found >= neurons.length ? found - neurons.length : null;
  choose(found !== null && found < neurons.length ? found : null);
}

function choose(place) {
  view.chosen = place;
  if (place !== null) view.synapse = null;
  neurons.forEach((neuron, other) => neuron.row.setAttribute("aria-selected", other === place));
  if (place !== null) neurons[place].row.scrollIntoView({block: "nearest"});
  find("only").disabled = place === null;
  find("readout").textContent = place !== null ? told(neurons[place]) : toldSynapse(synapses[view.synapse]);
  schedule();
}

function told(neuron) {
  const counts = data.wired ? ` · ${neuron.outgoing} outgoing and ${neuron.incoming} incoming synapses` +
    (neuron.undirected ? `, ${neuron.undirected} of unknown direction` : "") + ` · ${neuron.partners} partners` : "";
  const size = `${neuron.voxels.toLocaleString("en")} voxels, ${neuron.volume.toPrecision(3)} µm³`;
  return `Neuron ${neuron.id} · ${size}${counts}`;
}

function toldSynapse(synapse) {
  if (!synapse) return "";
  const place = [0, 1, 2].map((axis) => "zyx"[axis] + " " +
    Math.round((synapse[8 - axis] + synapse[11 - axis]) / 2 + data.middle[2 - axis])).join(", ");
  return `Synapse ${synapse[0]} · ${synapse[1]} ${synapse[3] ? "to" : "and"} ${synapse[2]} · ` +
    `${synapse[4].toLocaleString("en")} voxels · confidence ${synapse[5]} · at ${place} nm`;
}

function show(place, on) {
  neurons[place].shown = on;
  neurons[place].tick.checked = on;
  schedule();
}

function showAll(on) { neurons.forEach((neuron, place) => show(place, on)); }

function only() {
  if (view.chosen === null) return;
  neurons.forEach((neuron, place) => show(place, place === view.chosen));
}

function step(by) {
  if (!neurons.length) return;
  const from = view.chosen === null ? (by > 0 ? -1 : 0) : view.chosen;
  choose((from + by + neurons.length) % neurons.length);
}

function cell(kind, text) {
  const made = document.createElement(kind);
  made.append(text);
  return made;
}

function fillList() {
  const columns = [["µm³", (neuron) => neuron.volume.toPrecision(3)]];
  if (data.wired) {
    columns.push(["out", (neuron) => neuron.outgoing], ["in", (neuron) => neuron.incoming]);
    if (neurons.some((neuron) => neuron.undirected)) columns.push(["either", (neuron) => neuron.undirected]);
    columns.push(["partners", (neuron) => neuron.partners]);
  }
  const head = document.createElement("tr");
  head.append(...["show", "neuron", ...columns.map(([name]) => name)].map((name) => cell("th", name)));
  document.querySelector("#list thead").append(head);
  neurons.forEach((neuron, place) => {
    const [row, tick, swatch, name] = ["tr", "input", "span", "button"].map((kind) => document.createElement(kind));
    Object.assign(tick, {type: "checkbox", checked: true, ariaLabel: `show neuron ${neuron.id}`});
    tick.addEventListener("change", () => show(place, tick.checked));
    tick.addEventListener("click", (event) => event.stopPropagation());
    swatch.className = "swatch";
    swatch.style.background = `rgb(${neuron.colour.join()})`;
    name.append(swatch, neuron.id);
    row.append(cell("td", tick), cell("td", name), ...columns.map(([, value]) => cell("td", value(neuron))));
    row.addEventListener("click", () => choose(view.chosen === place ? null : place));
    Object.assign(neuron, {row, tick, shown: true});
    document.querySelector("#list tbody").append(row);
  });
}

// ---- mouse, fingers and keys

function listen() {
  const down = new Map(); // It says where each pointer is that touches.
  let travelled = 0;
  const at = (event) => [event.offsetX, event.offsetY];
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    down.set(event.pointerId, at(event));
    travelled = down.size > 1 ? 100 : 0;
    canvas.classList.add("moving");
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!down.has(event.pointerId)) return;
    const [x, y] = at(event), [oldX, oldY] = down.get(event.pointerId);
    travelled += Math.abs(x - oldX) + Math.abs(y - oldY);
    if (down.size > 1) {
      const [[otherX, otherY]] = [...down].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
      const [now, before] = [Math.hypot(x - otherX, y - otherY), Math.hypot(oldX - otherX, oldY - otherY)];
      zoomBy(now / Math.max(1, before), otherX, otherY);
    } else if (event.shiftKey || event.buttons & 6) moveBy(x - oldX, y - oldY);
    else turnBy(x - oldX, y - oldY);
    down.set(event.pointerId, [x, y]);
  });
  for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, (event) => {
    if (kind === "pointerup" && travelled < 5 && event.button === 0) pick(pickedAt(...at(event)));
    down.delete(event.pointerId);
    canvas.classList.remove("moving");
  });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY / (event.deltaMode ? 20 : 500)), ...at(event));
  }, {passive: false});
  document.addEventListener("keydown", press);
  for (const [id, act] of Object.entries({all: () => showAll(true), none: () => showAll(false), only, reset}))
    find(id).addEventListener("click", act);
  for (const id of ["synapses", "box"]) find(id).addEventListener("change", schedule);
  new ResizeObserver(schedule).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", schedule);
}

function reset() { look(START); }
function toggle(id) { find(id).checked = !find(id).checked; schedule(); }

const ARROWS = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
const KEYS = {
  x: () => look(ALONG.x), y: () => look(ALONG.y), z: () => look(ALONG.z), r: reset,
  "+": () => zoomBy(1.25), "=": () => zoomBy(1.25), "-": () => zoomBy(0.8),
  n: () => step(1), p: () => step(-1), o: only, a: () => showAll(true),
  h: () => view.chosen === null || show(view.chosen, !neurons[view.chosen].shown),
  s: () => toggle("synapses"), b: () => toggle("box"), Escape: () => pick(null),
};

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const arrow = event.target === canvas && ARROWS[event.key];
  if (arrow) {
    event.preventDefault();
    (event.shiftKey ? moveBy : turnBy)(20 * arrow[0], 20 * arrow[1]);
  } else if (KEYS[event.key]) KEYS[event.key]();
}

async function start() {
  fillList();
  find("legend").hidden = !synapses.length;
  find("synapses").parentElement.hidden = !synapses.length;
  find("only").disabled = true;
  if (gl) {
    await upload();
    listen();
    reset();
    draw();
  } else {
    find("missing").hidden = false;
    find("missing").textContent = "This browser offers no WebGL 2, so the neurons cannot be drawn; their list is here.";
    find("stage").hidden = true;
  }
}
start().then(() => document.documentElement.dataset.ready = "yes", (error) => {
  find("missing").hidden = false;
  find("missing").textContent = `The neurons cannot be drawn (${error}): this page needs a browser of 2023 or later.`;
});
