"use strict";
// Asks about one doubt after the other. A box of voxels is one picture, its sections below each other.
const {doubts, resolution, total, key, twice} = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const AXES = ["z", "y", "x"], SIDE = 320, MOVED = {",": -1, ".": 1};
const COLOURS = [null, [255, 146, 43], [51, 154, 240]];
// What is answered: yes, no, skip; that orange, blue or neither of the two is a neuron.
const BUTTONS = {a: "accept", r: "reject", s: "skip", 1: "drop-one", 2: "drop-two", 0: "drop-both"};
const state = {at: 0, axis: 0, point: [0, 0, 0], opacity: 0.35, answers: {}, again: false, shown: null};
const PLACE = `emcore doubts ${key}`, boxes = new Map();

function stored() {
  try {
    const found = JSON.parse(localStorage.getItem(PLACE) || "{}");
    for (const [rank, given] of Object.entries(found))
      if (/^(r|s|a+|0+|1+|2+)$/.test(given)) state.answers[rank] = given;
  } catch { unkept(); }
}

function keep() {
  try { localStorage.setItem(PLACE, JSON.stringify(state.answers)); } catch { unkept(); }
}

function unkept() {
  find("trouble").hidden = false;
  find("trouble").textContent = "This browser keeps nothing for this page: save the edits before you close it.";
}

async function pixels(text) {
  const image = new Image();
  image.src = `data:image/png;base64,${text}`;
  await image.decode();
  const canvas = Object.assign(document.createElement("canvas"), {width: image.width, height: image.height});
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(image, 0, 0);
  const {data} = context.getImageData(0, 0, image.width, image.height);
  return Uint8Array.from({length: data.length / 4}, (_, index) => data[4 * index]);
}

function box(number) { // unpacked once, and the next one while this one is looked at
  if (number < 0 || number >= doubts.length) return null;
  if (!boxes.has(number)) {
    if (boxes.size > 8) boxes.delete(boxes.keys().next().value);
    boxes.set(number, Promise.all([pixels(doubts[number].raw), pixels(doubts[number].sides)]));
  }
  return boxes.get(number);
}

async function open(number, again = false) {
  state.at = Math.max(0, Math.min(doubts.length - 1, number));
  state.again = again;
  state.shown = null; // nothing is answered before it is seen
  state.point = [...doubts[state.at].middle];
  const wanted = state.at, shown = await box(wanted);
  if (wanted !== state.at) return; // a faster key went on
  state.shown = shown;
  ask();
  draw();
  box(state.at + 1);
}

function ask() {
  const doubt = doubts[state.at], one = named("one", "orange"), two = named("two", "blue");
  const parts = doubt.edit === "split" ? ["One object here. Are ", one, " and ", two, " two neurons?"]
    : ["Two objects here. Are ", one, " and ", two, " one neuron?"];
  const given = state.answers[doubt.rank] ?? "", times = Math.max(doubt.asked, given ? needed(doubt, given) : 1);
  const asked = state.again ? ` (asked again, ${given.length + 1} of ${times})` : "";
  find("question").replaceChildren(`${doubt.rank}. `, ...parts, asked);
  const at = [doubt.at_z_nm, doubt.at_y_nm, doubt.at_x_nm].map((nm) => (nm / 1000).toFixed(2)).join(", ");
  const rows = [["why", doubt.reason], ["chance of an error", `${Math.round(100 * doubt.chance)} %`],
    ["orange", `${size(doubt.um3)} µm³`], ["blue", `${size(doubt.to_um3)} µm³`],
    ["contact", `${doubt.faces} faces`], [doubt.statistic, doubt.value.toFixed(3)],
    ["place (z, y, x)", `${at} µm`]];
  if ("cable_um" in doubt) rows.push(["cable", `${size(doubt.cable_um)} + ${size(doubt.to_cable_um)} µm`]);
  if (doubt.like !== "") rows.push(["nearly the same question as", `doubt ${doubt.like}`]);
  if ("synapses" in doubt) rows.push(["synapses", `${doubt.synapses} + ${doubt.to_synapses}`]);
  find("facts").replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    row.append(...cells.map((text) => Object.assign(document.createElement("td"), {textContent: text})));
    return row;
  }));
  for (const [answer, id] of Object.entries(BUTTONS))
    find(id).classList.toggle("chosen", !state.again && given[0] === answer);
  const counts = ["accepted", "rejected", "skipped", "dropped"].map((kind) =>
    doubts.filter((one) => outcome(one) === kind).length);
  const [left, wait] = [isOpen, waits].map((is) => doubts.filter(is).length);
  find("progress").textContent = `${counts[0]} yes, ${counts[1]} no, ${counts[2]} skipped, ` +
    `${counts[3] ? `${counts[3]} dropped, ` : ""}${wait ? `${wait} to ask again, ` : ""}${left} open` +
    `; the ${doubts.length} most urgent of ${total} doubts`;
  [...find("bar").children].forEach((part, index) => { part.style.width = `${100 * counts[index] / doubts.length}%`; });
}

function named(kind, text) {
  return Object.assign(document.createElement("span"), {className: kind, textContent: text});
}

function size(value) { return value >= 0.1 ? value.toFixed(2) : value.toPrecision(2); }

// How often the same answer must be given: a wrong yes costs more than many right ones bring.
function needed(doubt, given) { return /[rs]/.test(given) ? 1 : given[0] === "a" ? doubt.asked : twice ? 2 : 1; }

function outcome(doubt) {
  const given = state.answers[doubt.rank];
  if (!given || given.length < needed(doubt, given)) return null;
  return {a: "accepted", r: "rejected", s: "skipped"}[given[0]] ?? "dropped";
}

function waits(doubt) { return doubt.rank in state.answers && outcome(doubt) === null; }

function isOpen(doubt) { return !(doubt.rank in state.answers); }

// The same answer, given by somebody who went back, neither counts again nor takes away how often it was given.
function answer(given) {
  if (!state.shown) return;
  const rank = doubts[state.at].rank, before = state.answers[rank] ?? "", same = before[0] === given;
  state.answers[rank] = same ? (state.again ? before + given : before) : given;
  keep();
  if (!state.again && state.at + 1 < doubts.length) open(state.at + 1);
  else again();
}

// Asks what waits for another yes, one after the other.
function again() {
  const later = doubts.findIndex((doubt, index) => index > state.at && waits(doubt));
  const following = later >= 0 ? later : doubts.findIndex(waits);
  if (following >= 0) open(following, true);
  else {
    state.again = false;
    ask();
  }
}

function next() {
  const later = doubts.findIndex((doubt, index) => index > state.at && isOpen(doubt));
  const following = later >= 0 ? later : doubts.findIndex(isOpen);
  if (following >= 0) open(following);
  else again();
}

function back() {
  open(state.at - 1);
}

// The rows of a table of edits. A dropped side of a split is held apart first, so that the other one stays.
function rowsOf(doubt) {
  const kind = outcome(doubt), given = state.answers[doubt.rank]?.[0], split = doubt.edit === "split";
  const one = [doubt.z, doubt.y, doubt.x], two = [doubt.to_z, doubt.to_y, doubt.to_x], none = ["", "", ""];
  if (kind === "accepted") return [[doubt.edit, ...one, ...two]];
  if (kind !== "dropped") return [];
  const rows = split && given !== "0" ? [["split", ...one, ...two]] : [];
  if (given !== "2") rows.push(["drop", ...one, ...none]);
  if (given === "2" || (given === "0" && !split)) rows.push(["drop", ...two, ...none]);
  return rows;
}

function edits() {
  const names = ["edit", "z", "y", "x", "to_z", "to_y", "to_x"];
  return [names, ...doubts.flatMap(rowsOf)].map((row) => row.join()).join("\r\n") + "\r\n";
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([edits()], {type: "text/csv"}));
  link.download = "edits.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function move(axis, by) {
  const {shape} = doubts[state.at];
  state.point[axis] = Math.max(0, Math.min(shape[axis] - 1, state.point[axis] + by));
  draw();
}

function draw() {
  if (!state.shown) return;
  for (const canvas of document.querySelectorAll("canvas")) section(canvas);
}

// One plane through the cross, in its right proportions and in the middle of the canvas.
function placed(axis) {
  const {shape} = doubts[state.at], [rows, columns] = [0, 1, 2].filter((other) => other !== axis);
  const tall = shape[rows] * resolution[rows], wide = shape[columns] * resolution[columns];
  const fit = SIDE / Math.max(tall, wide);
  return {rows, columns, left: (SIDE - wide * fit) / 2, top: (SIDE - tall * fit) / 2,
    rowHeight: resolution[rows] * fit, columnWidth: resolution[columns] * fit};
}

function section(canvas) {
  const axis = Number(canvas.dataset.axis), coloured = canvas.dataset.coloured === "yes";
  const doubt = doubts[state.at], {shape} = doubt, [raw, sides] = state.shown;
  const {rows, columns, left, top, rowHeight, columnWidth} = placed(axis);
  const plane = new ImageData(shape[columns], shape[rows]), voxel = [0, 0, 0];
  voxel[axis] = state.point[axis];
  for (let row = 0, to = 0; row < shape[rows]; row++)
    for (let column = 0; column < shape[columns]; column++, to += 4) {
      [voxel[rows], voxel[columns]] = [row, column];
      const index = (voxel[0] * shape[1] + voxel[1]) * shape[2] + voxel[2], tint = COLOURS[sides[index]];
      const share = coloured && tint ? state.opacity : 0;
      for (let c = 0; c < 3; c++) plane.data[to + c] = raw[index] * (1 - share) + (share ? tint[c] * share : 0);
      plane.data[to + 3] = 255;
    }
  const picture = Object.assign(document.createElement("canvas"), {width: shape[columns], height: shape[rows]});
  picture.getContext("2d").putImageData(plane, 0, 0);
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, SIDE, SIDE);
  context.imageSmoothingEnabled = false;
  context.drawImage(picture, left, top, shape[columns] * columnWidth, shape[rows] * rowHeight);
  const x = left + (state.point[columns] + 0.5) * columnWidth, y = top + (state.point[rows] + 0.5) * rowHeight;
  context.strokeStyle = "#ffe066";
  context.lineWidth = 1.5;
  context.beginPath(); // a cross that leaves its middle free
  for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
    context.moveTo(x + 7 * dx, y + 7 * dy);
    context.lineTo(x + 18 * dx, y + 18 * dy);
  }
  context.stroke();
  canvas.setAttribute("aria-label", `across ${AXES[axis]}${coloured ? ", both sides coloured" : ""}`);
  canvas.parentElement.classList.toggle("active", axis === state.axis);
  const caption = canvas.parentElement.querySelector("figcaption");
  caption.textContent = `${AXES[axis]} ${doubt.start[axis] + state.point[axis]}`;
}

function panels() {
  for (const coloured of ["no", "yes"])
    for (const axis of [0, 1, 2]) {
      const [figure, caption] = ["figure", "figcaption"].map((tag) => document.createElement(tag));
      const canvas = Object.assign(document.createElement("canvas"), {width: SIDE, height: SIDE});
      Object.assign(canvas.dataset, {axis, coloured});
      canvas.setAttribute("role", "img");
      canvas.addEventListener("click", (event) => {
        const view = placed(axis), scale = SIDE / canvas.clientWidth;
        state.axis = axis;
        move(view.rows, Math.floor((event.offsetY * scale - view.top) / view.rowHeight) - state.point[view.rows]);
        move(view.columns, Math.floor((event.offsetX * scale - view.left) / view.columnWidth) -
          state.point[view.columns]);
      });
      canvas.addEventListener("wheel", (event) => {
        event.preventDefault();
        state.axis = axis;
        move(axis, Math.sign(event.deltaY));
      }, {passive: false});
      figure.append(caption, canvas);
      find("planes").append(figure);
    }
}

function colour(by) {
  state.opacity = Math.max(0, Math.min(0.8, state.opacity + by));
  draw();
}

function home() {
  state.point = [...doubts[state.at].middle];
  draw();
}

const ACTIONS = {b: back, n: next, w: again, e: save, h: home, "[": () => colour(-0.15), "]": () => colour(0.15)};
for (const given of Object.keys(BUTTONS)) ACTIONS[given] = () => answer(given);

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !doubts.length) return;
  const name = event.key.toLowerCase();
  if (event.repeat && name in BUTTONS) return; // a key that is held down answers one question
  if (AXES.includes(name)) {
    state.axis = AXES.indexOf(name);
    draw();
  } else if (name in MOVED) move(state.axis, MOVED[name]);
  else if (name in ACTIONS) ACTIONS[name]();
  else return;
  event.preventDefault();
});
for (const [action, id] of [...Object.entries(BUTTONS), ["b", "back"], ["e", "save"]])
  find(id).addEventListener("click", (event) => {
    event.currentTarget.blur();
    ACTIONS[action]();
  });

async function start() {
  stored();
  panels();
  if (doubts.length) {
    const first = doubts.findIndex(isOpen), waiting = doubts.findIndex(waits);
    await open(Math.max(0, first >= 0 ? first : waiting), first < 0 && waiting >= 0);
  } else {
    find("ask").hidden = true;
    find("progress").textContent = "There is nothing to ask about.";
  }
  document.documentElement.dataset.ready = "yes";
}
start();
