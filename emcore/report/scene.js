"use strict";
// Neurons and synapses in 3-d. Places are x, y, z in nm from the middle of the volume. On the screen x, y and z become
// right, down and away: three directions that turn the same way as x, y, z do, so nothing is ever mirrored.
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const canvas = find("view"), neurons = data.neurons, synapses = data.synapses;
const gl = canvas.getContext("webgl2", {antialias: true});
const PRE = [1, 0.725, 0.1], POST = [1, 1, 1];
const ALONG = {z: [1, 0, 0, 0, 1, 0, 0, 0, 1], y: [1, 0, 0, 0, 0, 1, 0, -1, 0], x: [0, 1, 0, 0, 0, 1, 1, 0, 0]};
const START = times(about(1, -0.5), times(about(0, 0.35), ALONG.z));
// turn: the rows right, down and away in x, y, z; middle: the place in the middle of the screen; zoom: pixels a nm
const view = {turn: START, middle: [0, 0, 0], zoom: 1, chosen: null, synapse: null};
const number = new Map(neurons.map((neuron, place) => [neuron.id, place]));

// ---- small matrices of nine numbers, row by row

function times(a, b) {
  return [0, 1, 2].flatMap((row) => [0, 1, 2].map((column) =>
    a[3 * row] * b[column] + a[3 * row + 1] * b[3 + column] + a[3 * row + 2] * b[6 + column]));
}

function about(axis, angle) { // a turn around right (0), down (1) or away (2)
  const turn = [1, 0, 0, 0, 1, 0, 0, 0, 1], [i, j] = [(axis + 1) % 3, (axis + 2) % 3];
  turn[4 * i] = turn[4 * j] = Math.cos(angle);
  turn[3 * i + j] = -Math.sin(angle);
  turn[3 * j + i] = Math.sin(angle);
  return turn;
}

function turned(turn, place) { return [0, 3, 6].map((row) => dot(turn.slice(row, row + 3), place)); }
function dot(a, b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
function cross(a, b) { return [0, 1, 2].map((i) => a[(i + 1) % 3] * b[(i + 2) % 3] - a[(i + 2) % 3] * b[(i + 1) % 3]); }
function unit(a) { const length = Math.sqrt(dot(a, a)); return a.map((value) => value / length); }

function upright(turn) { // the same without what many turns have rounded away
  const right = unit(turn.slice(0, 3)), away = unit(cross(right, turn.slice(3, 6)));
  return [...right, ...cross(away, right), ...away];
}

// ---- what the graphics card draws

const SURFACE = [`#version 300 es
in vec3 place; in vec3 normal;
uniform mat3 turn; uniform vec3 low, size, middle; uniform vec2 zoom; uniform float depth;
out vec3 towards; out float distance;
void main() {
  vec3 at = turn * (low + size * place);
  vec3 seen = at - turn * middle;
  towards = turn * normal;
  distance = at.z * depth;
  gl_Position = vec4(seen.x * zoom.x, -seen.y * zoom.y, distance, 1.0);
}`, `#version 300 es
precision highp float;
in vec3 towards; in float distance;
uniform vec3 colour, ground; uniform float faint; uniform bool flat_colour;
out vec4 pixel;
void main() {
  if (flat_colour) { pixel = vec4(colour, 1.0); return; }
  vec3 n = normalize(towards), lamp = normalize(vec3(-0.4, -0.55, -1.0));
  float light = max(dot(n, lamp), 0.0), facing = max(-n.z, 0.0);
  float gloss = pow(max(dot(n, normalize(lamp + vec3(0.0, 0.0, -1.0))), 0.0), 40.0);
  vec3 shade = colour * (0.34 + 0.66 * light) * mix(0.55, 1.0, smoothstep(0.0, 0.55, facing)) + 0.16 * gloss;
  pixel = vec4(mix(shade, ground, max(faint, 0.22 * (0.5 + 0.5 * distance))), 1.0);
}`];
const BALLS = [`#version 300 es
in vec3 place; in vec3 colour; in float part;
uniform mat3 turn; uniform vec3 middle; uniform vec2 zoom; uniform float depth, size;
out vec3 own;
void main() {
  vec3 at = turn * place, seen = at - turn * middle;
  own = colour;
  gl_PointSize = size * part;
  gl_Position = vec4(seen.x * zoom.x, -seen.y * zoom.y, at.z * depth, 1.0);
}`, `#version 300 es
precision highp float;
in vec3 own;
uniform bool flat_colour, line; uniform float solid;
out vec4 pixel;
void main() {
  vec2 at = 2.0 * gl_PointCoord - 1.0;
  float far = dot(at, at);
  if (!line && far > 1.0) discard;
  if (flat_colour || line) { pixel = vec4(own, 1.0) * solid; return; }
  vec3 n = vec3(at, -sqrt(1.0 - far));
  float light = max(dot(n, normalize(vec3(-0.4, -0.55, -1.0))), 0.0);
  pixel = vec4(own * (0.5 + 0.5 * light) * (far > 0.72 ? 0.25 : 1.0), 1.0) * solid;
}`];

function program([vertex, fragment]) {
  const made = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw Error(gl.getShaderInfoLog(shader));
    gl.attachShader(made, shader);
  }
  gl.linkProgram(made);
  const uniforms = {};
  for (let i = 0; i < gl.getProgramParameter(made, gl.ACTIVE_UNIFORMS); i++) {
    const {name} = gl.getActiveUniform(made, i);
    uniforms[name] = gl.getUniformLocation(made, name);
  }
  return {made, uniforms, place: (name) => gl.getAttribLocation(made, name)};
}

async function unpack(neuron) { // stored are differences: of x, of y and of z along the vertices, of corners in turn
  const bytes = Uint8Array.from(atob(neuron.data), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const values = await new Response(stream).arrayBuffer(), count = neuron.vertices;
  const stored = new Uint16Array(values, 0, 3 * count), places = new Uint16Array(3 * count);
  for (let axis = 0; axis < 3; axis++)
    for (let i = 0, sum = 0; i < count; i++) places[3 * i + axis] = sum = (sum + stored[axis * count + i]) & 0xffff;
  const corners = new Uint32Array(values.slice(6 * count));
  for (let i = 1; i < corners.length; i++) corners[i] += corners[i - 1];
  delete neuron.data;
  return {places, corners, normals: normalsOf(neuron, places, corners)};
}

function normalsOf(neuron, places, corners) { // of a vertex: the mean of its triangles, the larger ones counting more
  const sums = new Float32Array(places.length), [sx, sy, sz] = neuron.step;
  for (let i = 0; i < corners.length; i += 3) {
    const [a, b, c] = [3 * corners[i], 3 * corners[i + 1], 3 * corners[i + 2]];
    const ux = (places[b] - places[a]) * sx, uy = (places[b + 1] - places[a + 1]) * sy, uz = (places[b + 2] - places[a + 2]) * sz;
    const vx = (places[c] - places[a]) * sx, vy = (places[c + 1] - places[a + 1]) * sy, vz = (places[c + 2] - places[a + 2]) * sz;
    const x = uy * vz - uz * vy, y = uz * vx - ux * vz, z = ux * vy - uy * vx;
    for (const corner of [a, b, c]) { sums[corner] += x; sums[corner + 1] += y; sums[corner + 2] += z; }
  }
  const normals = new Int8Array(4 * places.length / 3);
  for (let i = 0, j = 0; i < sums.length; i += 3, j += 4) {
    const length = Math.hypot(sums[i], sums[i + 1], sums[i + 2]) || 1;
    for (let axis = 0; axis < 3; axis++) normals[j + axis] = Math.round(127 * sums[i + axis] / length);
  }
  return normals;
}

function buffer(target, values) {
  const made = gl.createBuffer();
  gl.bindBuffer(target, made);
  gl.bufferData(target, values, gl.STATIC_DRAW);
  return made;
}

function attribute(where, size, type, normalised, stride, offset) {
  gl.enableVertexAttribArray(where);
  gl.vertexAttribPointer(where, size, type, normalised, stride, offset);
}

let surface, balls, ballBuffer, picking; // what lives on the graphics card

async function upload() {
  surface = program(SURFACE);
  balls = program(BALLS);
  for (const neuron of neurons) {
    const {places, corners, normals} = await unpack(neuron);
    neuron.array = gl.createVertexArray();
    gl.bindVertexArray(neuron.array);
    buffer(gl.ARRAY_BUFFER, places);
    attribute(surface.place("place"), 3, gl.UNSIGNED_SHORT, false, 6, 0);
    buffer(gl.ARRAY_BUFFER, normals);
    attribute(surface.place("normal"), 3, gl.BYTE, true, 4, 0);
    buffer(gl.ELEMENT_ARRAY_BUFFER, corners);
    neuron.corners = corners.length;
  }
  gl.bindVertexArray(null);
  ballBuffer = gl.createBuffer();
  picking = gl.createFramebuffer();
}

// ---- drawing

function rgb(text) { return text.match(/[\d.]+/g).slice(0, 3).map((value) => value / 255); }

function common(uniforms) {
  const turn = view.turn, ratio = window.devicePixelRatio || 1;
  gl.uniformMatrix3fv(uniforms.turn, true, turn);
  gl.uniform3fv(uniforms.middle, view.middle);
  gl.uniform2f(uniforms.zoom, 2 * ratio * view.zoom / canvas.width, 2 * ratio * view.zoom / canvas.height);
  gl.uniform1f(uniforms.depth, 1 / (1.02 * Math.sqrt(dot(data.half, data.half))));
}

function visible(synapse) {
  const sides = [synapse[1], synapse[2]].map((id) => number.get(id));
  return sides.some((place) => place !== undefined && neurons[place].shown);
}

function ballRows(colours) { // for each visible synapse both ends: place, colour, size
  const rows = [];
  synapses.forEach((synapse, place) => {
    if (!visible(synapse)) return;
    const larger = place === view.synapse ? 1.8 : 1, [pre, post] = colours(place, synapse[3]);
    rows.push(...synapse.slice(6, 9), ...pre, 0.85 * larger, ...synapse.slice(9, 12), ...post, larger);
  });
  return new Float32Array(rows);
}

function useRows(rows) { // of place, colour and size
  gl.useProgram(balls.made);
  common(balls.uniforms);
  gl.bindBuffer(gl.ARRAY_BUFFER, ballBuffer);
  gl.bufferData(gl.ARRAY_BUFFER, rows, gl.DYNAMIC_DRAW);
  attribute(balls.place("place"), 3, gl.FLOAT, false, 28, 0);
  attribute(balls.place("colour"), 3, gl.FLOAT, false, 28, 12);
  attribute(balls.place("part"), 1, gl.FLOAT, false, 28, 24);
}

function drawBalls(rows, flat) { // balls and the lines between them, faint where a surface lies before them
  useRows(rows);
  gl.uniform1f(balls.uniforms.size, (window.devicePixelRatio || 1) * Math.min(26, Math.max(9, 60 * view.zoom)));
  gl.uniform1i(balls.uniforms.flat_colour, flat);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  for (const [order, solid] of [[gl.GREATER, flat ? 1 : 0.5], [gl.LESS, 1]]) {
    (solid < 1 ? gl.enable : gl.disable).call(gl, gl.BLEND);
    gl.depthFunc(order);
    gl.depthMask(order === gl.LESS);
    gl.uniform1f(balls.uniforms.solid, solid);
    for (const [line, kind] of [[1, gl.LINES], [0, gl.POINTS]]) {
      gl.uniform1i(balls.uniforms.line, line);
      gl.drawArrays(kind, 0, rows.length / 7);
    }
  }
}

function drawBox(colour) {
  const rows = [], [x, y, z] = data.half;
  for (const axis of [0, 1, 2]) for (const a of [-1, 1]) for (const b of [-1, 1]) for (const end of [-1, 1]) {
    const at = [0, 0, 0];
    [at[axis], at[(axis + 1) % 3], at[(axis + 2) % 3]] = [end, a, b];
    rows.push(at[0] * x, at[1] * y, at[2] * z, ...colour, 1);
  }
  useRows(new Float32Array(rows));
  gl.uniform1i(balls.uniforms.line, 1);
  gl.uniform1f(balls.uniforms.solid, 1);
  gl.drawArrays(gl.LINES, 0, rows.length / 7);
}

function drawSurfaces(colour, flat, ground) {
  gl.useProgram(surface.made);
  common(surface.uniforms);
  gl.uniform1i(surface.uniforms.flat_colour, flat);
  gl.uniform3fv(surface.uniforms.ground, ground);
  neurons.forEach((neuron, place) => {
    if (!neuron.shown) return;
    gl.bindVertexArray(neuron.array);
    gl.uniform3fv(surface.uniforms.low, neuron.low);
    gl.uniform3fv(surface.uniforms.size, neuron.step);
    gl.uniform3fv(surface.uniforms.colour, colour(neuron, place));
    gl.uniform1f(surface.uniforms.faint, view.chosen === null || view.chosen === place ? 0 : 0.62);
    gl.drawElements(gl.TRIANGLES, neuron.corners, gl.UNSIGNED_INT, 0);
  });
  gl.bindVertexArray(null);
}

function clear() {
  gl.viewport(0, 0, canvas.width, canvas.height);
  gl.enable(gl.DEPTH_TEST);
  gl.clearColor(0, 0, 0, 0);
  gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
}

function draw() {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  gl.bindFramebuffer(gl.FRAMEBUFFER, null);
  clear();
  const style = getComputedStyle(document.body), ground = rgb(style.backgroundColor), ink = rgb(style.color);
  drawSurfaces((neuron) => neuron.colour.map((value) => value / 255), 0, ground);
  if (find("box").checked) drawBox(ink.map((value, i) => 0.35 * value + 0.65 * ground[i]));
  if (find("synapses").checked)
    drawBalls(ballRows((place, directed) => [PRE, directed ? POST : PRE]), 0);
  drawScale();
  drawAxes();
}

function drawScale() { // a round length that is at most 160 pixels long
  const most = 160 / view.zoom, power = 10 ** Math.floor(Math.log10(most));
  const length = power * [5, 2, 1].find((factor) => factor * power <= most);
  find("bar").style.width = `${length * view.zoom}px`;
  find("length").textContent = length >= 1000 ? `${length / 1000} µm` : `${Number(length.toPrecision(3))} nm`;
}

function drawAxes() {
  const parts = ["#e03131", "#2f9e44", "#1c7ed6"].flatMap((colour, axis) => {
    const [x, y] = [view.turn[axis], view.turn[3 + axis]];
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const text = document.createElementNS("http://www.w3.org/2000/svg", "text");
    for (const [name, value] of Object.entries({x1: 0, y1: 0, x2: 24 * x, y2: 24 * y, stroke: colour}))
      line.setAttribute(name, value);
    text.setAttribute("x", 32 * x);
    text.setAttribute("y", 32 * y);
    text.textContent = "xyz"[axis];
    return [line, text];
  });
  find("axes").replaceChildren(...parts);
}

let waiting = false;
function schedule() { // one drawing a frame, however fast the mouse moves
  if (waiting || !gl) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; draw(); });
}

// ---- moving

function fit() { // everything that is listed, as large as it fits
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

function turnBy(right, down) { // in pixels of the mouse: what is near follows it
  view.turn = upright(times(about(0, down / 150), times(about(1, -right / 150), view.turn)));
  schedule();
}

function moveBy(right, down) {
  for (const axis of [0, 1, 2])
    view.middle[axis] -= (right * view.turn[axis] + down * view.turn[3 + axis]) / view.zoom;
  schedule();
}

function zoomBy(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) { // what is at x, y stays there
  const [right, down] = [x - canvas.clientWidth / 2, y - canvas.clientHeight / 2];
  moveBy(-right, -down);
  view.zoom = Math.min(100, Math.max(1e-6, view.zoom * factor));
  moveBy(right, down);
}

// ---- picking and the list

function pickedAt(x, y) { // what is drawn at a place of the canvas: a number, neurons first, then synapses; or null
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
  return `Neuron ${neuron.id} · ${neuron.voxels.toLocaleString("en")} voxels, ${neuron.volume.toPrecision(3)} µm³${counts}`;
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
    const row = document.createElement("tr"), tick = document.createElement("input"), swatch = document.createElement("span");
    const name = document.createElement("button");
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
  const down = new Map(); // pointers that touch, where they are
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
      zoomBy(Math.hypot(x - otherX, y - otherY) / Math.max(1, Math.hypot(oldX - otherX, oldY - otherY)), otherX, otherY);
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
    find("missing").textContent = "This browser offers no WebGL 2, so the neurons cannot be drawn; the list stands here.";
    find("stage").hidden = true;
  }
}
start().then(() => document.documentElement.dataset.ready = "yes", (error) => {
  find("missing").hidden = false;
  find("missing").textContent = `The neurons cannot be drawn (${error}): this page needs a browser of 2023 or later.`;
});
