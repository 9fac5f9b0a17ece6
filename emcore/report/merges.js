// Why the voxel under the cross has its label: the merges that led to it, in the words of `python -m emcore explain`.
// Fragments are numbered from 1. Merge m joined the clusters of a[m] and b[m]; the first `made` of them stand in the
// labels on display.
const SHOWN = 12; // merges that are written from either end of a long chain
let tree = null; // of the volume on display
let marked = null; // the voxel that others are compared with, as a point of the grid

async function openTree() {
  const packed = volume.merges, opened = volume;
  [tree, marked] = [null, null];
  find("why").hidden = !packed;
  if (!packed) return;
  const names = ["fragments", "a", "b", "height", "sizes", "u", "v", "count"];
  const arrays = await Promise.all(names.map(async (name) =>
    (await unpack(packed[name], name === "fragments" ? opened.shape[2] : packed[name].length)).values));
  if (volume !== opened) return; // another volume was chosen meanwhile
  const found = {...packed, ...Object.fromEntries(names.map((name, place) => [name, arrays[place]]))};
  found.height = new Float64Array(found.height.buffer);
  [found.parent, found.when] = forest(found.a, found.b, found.sizes.length);
  tree = found;
  explain();
}

// i is the smallest fragment of its cluster until that joins the cluster of parent[i] < i, with the merge when[i].
function forest(a, b, count) {
  const parent = Int32Array.from({length: count}, (_, i) => i), when = new Int32Array(count).fill(a.length);
  const root = Int32Array.from(parent);
  const top = (i) => { while (root[i] !== i) i = root[i] = root[root[i]]; return i; };
  for (let m = 0; m < a.length; m++) {
    const [x, y] = [top(a[m]), top(b[m])];
    if (x === y) continue;
    const [low, high] = x < y ? [x, y] : [y, x];
    root[high] = parent[high] = low;
    when[high] = m;
  }
  return [parent, when];
}

// With which merge each fragment came to the cluster of one of them: -1 for itself, a.length for those that never did.
function joins(fragment) {
  const came = Int32Array.from(tree.when), above = new Uint8Array(came.length);
  for (let at = fragment, latest = -1; ; at = tree.parent[at]) {
    [came[at], latest] = [latest, tree.when[at]];
    above[at] = 1;
    if (tree.parent[at] === at) break;
  }
  for (let i = 1; i < came.length; i++) // a parent comes before its children
    if (!above[i] && tree.parent[i] !== i) came[i] = Math.max(came[i], came[tree.parent[i]]);
  return came;
}

function chain(came) {
  const found = new Map();
  for (let i = 1; i < came.length; i++) {
    if (came[i] < 0 || came[i] >= tree.made) continue;
    const merge = found.get(came[i]) || {partner: i, fragments: 0, voxels: 0, contacts: 0};
    merge.fragments++;
    merge.voxels += tree.sizes[i];
    found.set(came[i], merge);
  }
  for (let e = 0; e < tree.u.length; e++) {
    const one = came[tree.u[e]], other = came[tree.v[e]], last = Math.max(one, other);
    if (one !== other && last < tree.made) found.get(last).contacts += tree.count[e];
  }
  return [...found].sort((one, other) => one[0] - other[0]);
}

// The merges of touching fragments that lead from one to another of the same label.
function path(came, start, end) {
  const beside = new Map(), before = new Map([[start, null]]), waiting = [start];
  const add = (one, other, m) => beside.set(one, [...(beside.get(one) || []), [other, m]]);
  for (let m = 0; m < tree.made; m++)
    if (came[tree.a[m]] < tree.made) { add(tree.a[m], tree.b[m], m); add(tree.b[m], tree.a[m], m); }
  while (waiting.length && !before.has(end)) {
    const at = waiting.pop();
    for (const [next, m] of beside.get(at) || [])
      if (!before.has(next)) { before.set(next, [at, m]); waiting.push(next); }
  }
  const steps = [];
  for (let at = end; at !== start; at = before.get(at)[0]) steps.unshift([before.get(at)[0], at, before.get(at)[1]]);
  return steps;
}

// Clusters are numbered by their smallest fragments, as the labels of a cut are.
function labelOf(fragment) {
  let label = 0;
  while (tree.when[fragment] < tree.made) fragment = tree.parent[fragment];
  for (let i = 1; i <= fragment; i++) label += tree.when[i] >= tree.made;
  return label;
}

function contact(one, other) {
  const came = [joins(one), joins(other)], inside = (which, fragment) => came[which][fragment] < tree.made;
  let contacts = 0;
  for (let e = 0; e < tree.u.length; e++) {
    const [u, v] = [tree.u[e], tree.v[e]];
    if ((inside(0, u) && inside(1, v)) || (inside(0, v) && inside(1, u))) contacts += tree.count[e];
  }
  return contacts ? `between their segments are ${contacts} contacts` : "their segments do not touch";
}

const similarity = (merge) => (1 - tree.height[merge]).toFixed(6);
const shortened = (rows) => rows.length <= 2 * SHOWN ? rows
  : [...rows.slice(0, SHOWN), `  ... ${rows.length - 2 * SHOWN} more ...`, ...rows.slice(-SHOWN)];

const row = (statistic, ...columns) =>
  `  ${statistic.padStart(12)}` + columns.map((column) => `  ${String(column).padStart(10)}`).join("");

function place(point) {
  const fragment = tree.fragments[(point[0] * volume.shape[1] + point[1]) * volume.shape[2] + point[2]];
  const voxel = point.map((at, axis) => volume.start[axis] + at).join(" ");
  return {fragment, told: `voxel ${voxel}: fragment ${fragment}` + (fragment ? `, ${tree.sizes[fragment]} voxels` : "")};
}

function explained(point, other) {
  const here = place(point), lines = [here.told];
  if (!here.fragment) return [...lines, "it belongs to no fragment: no affinity towards it is above low, or it is masked out"];
  const came = joins(here.fragment), rows = chain(came);
  let fragments = 0, voxels = 0;
  came.forEach((merge, i) => { if (i && merge < tree.made) { fragments++; voxels += tree.sizes[i]; } });
  lines.push(`label ${labelOf(here.fragment)} at threshold ${tree.threshold}: ${fragments} fragments, ${voxels} voxels`);
  if (!rows.length) lines.push(`nothing joins it below ${tree.threshold}`);
  else lines.push("what joined it, in order, by the statistic of the affinities at the contact:",
    row(tree.statistic, "cluster of", "fragments", "voxels", "contacts"));
  lines.push(...shortened(rows.map(([m, merge]) =>
    row(similarity(m), merge.partner, merge.fragments, merge.voxels, merge.contacts))));
  return other ? [...lines, "", ...compared(came, here, place(other))] : lines;
}

function compared(came, here, there) {
  const lines = [there.told];
  if (!there.fragment) return [...lines, "it belongs to no fragment, so nothing can join it"];
  if (there.fragment === here.fragment)
    return [...lines, "both are in one fragment: the watershed joined them, before any merge"];
  const merge = came[there.fragment];
  if (merge >= tree.made)
    return [...lines, `it has label ${labelOf(there.fragment)}: they are not joined at threshold ${tree.threshold}`,
      merge < tree.a.length
        ? `they join from thresholds above ${tree.height[merge].toFixed(6)} on (${tree.statistic} ${similarity(merge)})`
        : "no chain of merges joins them at any threshold that was computed", contact(here.fragment, there.fragment)];
  const steps = path(came, here.fragment, there.fragment);
  const [first, second] = steps.reduce((worst, step) => tree.height[step[2]] > tree.height[worst[2]] ? step : worst);
  return [...lines, `both have label ${labelOf(here.fragment)}; the weakest link between them is the merge of fragments ${first} and ` +
    `${second} at ${tree.statistic} ${similarity(merge)}`, "the way from one to the other:",
    ...shortened(steps.map(([one, other, m]) => `  ${one} - ${other}  ${similarity(m)}`))];
}

function explain() {
  if (tree && find("why").open) find("merges").textContent = explained(state.point, marked).join("\n");
}

function mark() {
  if (!tree) return;
  marked = [...state.point];
  find("why").open = true;
  explain();
}
