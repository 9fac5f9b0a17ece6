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
// turn has the rows right, down and away in x, y, z; middle is in the middle of the screen; zoom is pixels a nm.
const view = {turn: START, middle: [0, 0, 0], zoom: 1, chosen: null, synapse: null};
const number = new Map(neurons.map((neuron, place) => [neuron.id, place]));

// ---- small matrices of nine numbers, row by row

function times(a, b) {
  return [0, 1, 2].flatMap((row) => [0, 1, 2].map((column) =>
    a[3 * row] * b[column] + a[3 * row + 1] * b[3 + column] + a[3 * row + 2] * b[6 + column]));
}

function about(axis, angle) { // It turns around right (0), down (1) or away (2).
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

function upright(turn) { // Many turns round; this makes the rows straight again.
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

async function unpack(neuron) { // Differences are stored: x, y and z along the vertices, then corners.
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

function normalsOf(neuron, places, corners) { // A vertex has the mean of its triangles; larger ones count more.
  const sums = new Float32Array(places.length), [sx, sy, sz] = neuron.step;
  for (let i = 0; i < corners.length; i += 3) {
    const [a, b, c] = [3 * corners[i], 3 * corners[i + 1], 3 * corners[i + 2]];
    const ux = (places[b] - places[a]) * sx, vx = (places[c] - places[a]) * sx;
    const uy = (places[b + 1] - places[a + 1]) * sy, vy = (places[c + 1] - places[a + 1]) * sy;
    const uz = (places[b + 2] - places[a + 2]) * sz, vz = (places[c + 2] - places[a + 2]) * sz;
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

let surface, balls, ballBuffer, picking; // These live on the graphics card.

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

function ballRows(colours) { // Each visible synapse has two rows: place, colour and size.
  const rows = [];
  synapses.forEach((synapse, place) => {
    if (!visible(synapse)) return;
    const larger = place === view.synapse ? 1.8 : 1, [pre, post] = colours(place, synapse[3]);
    rows.push(...synapse.slice(6, 9), ...pre, 0.85 * larger, ...synapse.slice(9, 12), ...post, larger);
  });
  return new Float32Array(rows);
}

function useRows(rows) { // Each row has a place, a colour and a size.
  gl.useProgram(balls.made);
  common(balls.uniforms);
  gl.bindBuffer(gl.ARRAY_BUFFER, ballBuffer);
  gl.bufferData(gl.ARRAY_BUFFER, rows, gl.DYNAMIC_DRAW);
  attribute(balls.place("place"), 3, gl.FLOAT, false, 28, 0);
  attribute(balls.place("colour"), 3, gl.FLOAT, false, 28, 12);
  attribute(balls.place("part"), 1, gl.FLOAT, false, 28, 24);
}

function drawBalls(rows, flat) { // They are faint where a surface lies before them.
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

function drawScale() { // The bar is a round length of at most 160 pixels.
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
function schedule() { // It draws once a frame, however fast the mouse moves.
  if (waiting || !gl) return;
  waiting = true;
  requestAnimationFrame(() => { waiting = false; draw(); });
}
