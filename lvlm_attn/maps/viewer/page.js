// What is chosen, and what follows from it.

// English words that name nothing that could be seen in a picture.
const EMPTY_WORDS = new Set(("a an the this that these those there here it its in on at of to and or is are was were be " +
  "has have with as by from for image picture photo photograph scene shows show showing depicts depict features " +
  "feature contains contain displays captures i we you he she they").split(" "));
const byId = (id) => document.getElementById(id);
const state = {
  layer: 0, head: 0, view: "raw", image: 0, level: "all", direction: "from", opacity: 0.72,
  tokens: firstTokens(), // by run
  place: null, // {level, row, col} of the image, or {token: [by run]}
  hover: null, // a point of the picture
};
const pictures = told.images.map((image) => loaded(image.source));
let current = []; // what the panels show: values by run, and what was drawn
let turn = 0; // counts repaints, so that a late one is dropped

// What is chosen when the page opens: the word it was made for, or the first one of the answer that says something;
// in a second run the same word, where it has it.
function firstTokens() {
  const said = (run, fits) => run.tokens.findIndex((token) => token.kind === "answer" && token.row >= 0 && fits(token));
  const word = (token) => token.text.trim().toLowerCase();
  let first = null;
  return runs.map((run) => {
    const tries = [
      () => run.tokens.findIndex((token) => token.row >= 0 && token.row === run.start),
      () => (first ? said(run, (token) => word(token) === word(first)) : -1),
      () => said(run, (token) => /^[\p{L}\p{N}]/u.test(word(token)) && !EMPTY_WORDS.has(word(token))),
      () => said(run, () => true),
      () => run.tokens.findIndex((token) => token.row >= 0),
    ];
    let found = -1;
    for (const attempt of tries) if (found < 0) found = attempt();
    first = first || run.tokens[found];
    return found;
  });
}

function loaded(source) {
  if (!source) return null;
  const picture = new Image();
  picture.onload = () => repaint();
  picture.src = source;
  return picture;
}

const image = () => told.images[state.image];
const picture = () => (pictures[state.image] && pictures[state.image].complete ? pictures[state.image] : null);
const view = () => VIEWS[state.direction === "to" ? "raw" : state.view];

const on = {
  image,
  hover(point) { state.hover = point; paint(); tell(); },
  pick(point) {
    const levels = image().levels;
    const level = state.level === "coarse" ? 0 : levels.length - 1;
    const cell = cellAt(levels[level], ...point);
    if (!cell) return;
    state.place = { level, row: cell.row, col: cell.col };
    state.direction = "to";
    repaint();
  },
  token(run, index) {
    const number = runs.indexOf(run);
    const token = run.tokens[index];
    if (token.kind === "image") {
      state.image = token.image;
    } else if (state.direction === "to" || token.row < 0) {
      state.direction = "to";
      state.place = { token: runs.map((other) => twin(run, index, other)) };
    } else {
      state.tokens = runs.map((other, at) => {
        const same = twin(run, index, other);
        return same >= 0 && other.tokens[same].row >= 0 ? same : state.tokens[at];
      });
      state.tokens[number] = index;
    }
    repaint();
  },
};

// The token of another run that stands in the same place.
function twin(run, index, other) {
  if (run === other) return index;
  const token = other.tokens[index];
  return token && token.kind === run.tokens[index].kind ? index : -1;
}

const panels = runs.map((run) => new Panel(run, byId("panels"), on));
byId("panels").classList.toggle("lone", runs.length === 1);
const change = runs.length > 1 ? new Panel(null, byId("panels"), on) : null;

// The keys that a place means to a run.
function keysAt(run, number) {
  if (!state.place) return [];
  if (state.place.token) {
    const token = run.tokens[state.place.token[number]];
    return token && token.key >= 0 ? [token.key] : [];
  }
  const level = image().levels[state.place.level];
  const key = level && state.place.row < level.rows ? level.keys[state.place.row * level.cols + state.place.col] : -1;
  return key >= 0 ? [key] : [];
}

async function valuesOf(run, number) {
  if (state.direction === "to") {
    const keys = keysAt(run, number);
    return { received: keys.length ? await columnOf(run, state.layer, state.head, keys) : null };
  }
  const token = run.tokens[state.tokens[number]];
  if (!token || token.row < 0) return {};
  const row = await rowUnder(run, state.view, state.layer, state.head, token.row);
  return { row, mass: await run.mass(state.layer, state.head, token.row), token };
}

// Reads what is chosen, then paints.
async function repaint() {
  const mine = ++turn;
  const found = await Promise.all(runs.map(valuesOf));
  if (mine !== turn) return;
  current = found;
  syncControls();
  for (const panel of [...panels, change]) if (panel && told.images.length) panel.fit(image());
  paint();
  shadeTokens();
  tell();
  drawGrid();
}

function marks() {
  const found = [];
  const box = (place, dashed) => found.push({ box: boxOf(image().levels[place.level], place.row, place.col), dashed });
  if (state.direction === "to" && state.place && !state.place.token) box(state.place, false);
  const under = hovered();
  if (under) box(under, true);
  return found;
}

// The cell under the pointer.
function hovered() {
  if (!state.hover || !told.images.length) return null;
  const levels = image().levels;
  const level = state.level === "coarse" ? 0 : levels.length - 1;
  const cell = cellAt(levels[level], ...state.hover);
  return cell ? { level, ...cell } : null;
}

function paint() {
  if (!told.images.length) return;
  const shown = view();
  const drawn = current.map((item) => (item.row ? cellsOf(image(), state.level, item.row, shown.ratio) : null));
  const top = Math.max(...drawn.map((item) => (item ? largest(item.cells, shown.signed) : 0)), 1e-12);
  panels.forEach((panel, number) => {
    const options = { opacity: state.opacity, top, signed: shown.signed, marks: marks() };
    drawMap(panel.canvas, image(), picture(), drawn[number], options);
    legend(panel, drawn[number], top, shown);
    panel.said.textContent = saying(current[number], runs[number], number);
  });
  if (!change) return;
  const both = drawn.every((item) => item);
  let cells = null;
  if (both) {
    cells = { level: drawn[0].level, cells: drawn[1].cells.map((value, index) => value - drawn[0].cells[index]) };
  }
  const most = cells ? Math.max(largest(cells.cells, true), 1e-12) : 1;
  drawMap(change.canvas, image(), picture(), cells, { opacity: state.opacity, top: most, signed: true, marks: marks() });
  legend(change, cells, most, { ...shown, signed: true, unit: shown.ratio ? "change of the ratio" : "change (%)" });
  const words = current.map((item) => item.token && visible(item.token.text).trim());
  change.said.textContent = both ? `“${words[1]}” minus “${words[0]}”`
    : state.direction === "to" ? "Choose a direction and a word to see a difference (D)." : "Choose a token that both runs have.";
}

function legend(panel, drawn, top, shown) {
  for (const part of [panel.bar, panel.low, panel.high, panel.unit]) part.hidden = !drawn;
  if (!drawn) return;
  drawBar(panel.bar, shown.signed);
  panel.low.textContent = shown.signed ? written(-top, { ...shown, signed: false }) : "0";
  panel.high.textContent = written(top, shown);
  panel.unit.textContent = `${shown.unit}, per patch`;
}

function saying(item, run, number) {
  if (state.direction === "to") {
    if (!state.place) return "Click a patch of the picture or a token to see who attends to it.";
    const keys = keysAt(run, number);
    if (!keys.length) return "This run has no key there.";
    const most = item && item.received ? item.received.indexOf(Math.max(...item.received)) : -1;
    const text = most >= 0 ? visible(run.tokens[run.tokenOfRow.get(most)].text).trim() : "";
    const strongest = most >= 0 ? `; most does “${text}”, ${written(item.received[most], VIEWS.raw)}` : "";
    return `Tokens are shaded by what they pay to ${placeName(number)}${strongest}.`;
  }
  if (!item || !item.token) return "Click a token.";
  return `“${visible(item.token.text).trim()}” pays ${written(item.mass, VIEWS.raw)} of its attention to the image`;
}

function placeName(number) {
  if (state.place.token) return `“${visible(runs[number].tokens[state.place.token[number]].text).trim()}”`;
  return `the patch in row ${state.place.row + 1}, column ${state.place.col + 1}`;
}

function shadeTokens() {
  byId("shading").textContent = state.direction === "to" ? "by how much each word attends to the chosen place"
    : view().signed ? "what the chosen word attends to more than the mean: darkest, most"
    : "what the chosen word attends to: darkest, most";
  panels.forEach((panel, number) => {
    const run = runs[number];
    const { row, received } = current[number];
    const values = run.tokens.map((token) => {
      if (received) return token.row >= 0 ? received[token.row] : null;
      return row && token.key >= 0 ? row[token.key] : null;
    });
    const chosen = state.direction === "from" ? state.tokens[number] : state.place && state.place.token
      ? state.place.token[number] : -1;
    panel.shade(values, chosen, (index, value) => {
      const token = run.tokens[index];
      if (token.kind === "image") return `show image ${token.image + 1}`;
      const silent = token.row < 0 ? "; no query of it was recorded" : "";
      if (value === null) return `“${token.text}”${silent}`;
      const verb = received ? "pays" : "receives";
      return `“${token.text}” ${verb} ${written(value, received ? VIEWS.raw : view())}${silent}`;
    });
  });
}

// The value under the pointer, of every run.
function tell() {
  const under = hovered();
  if (!under) {
    byId("status").textContent = "Move over a picture to read values; click a patch to see who attends to it.";
    return;
  }
  const names = image().levels.length > 1 ? ["thumbnail", "tiles"] : [""];
  const lines = image().levels.map((level, number) => {
    const cell = cellAt(level, ...state.hover);
    if (!cell || cell.key < 0) return "";
    const values = current.map((item, at) => (item.row ? `${runs[at].name}: ${written(item.row[cell.key], view())}` : ""));
    const difference = current.length > 1 && current.every((item) => item.row)
      ? `difference: ${written(current[1].row[cell.key] - current[0].row[cell.key], { ...view(), signed: true })}` : "";
    const where = `row ${cell.row + 1}, column ${cell.col + 1} of ${level.rows} x ${level.cols}`;
    return [[names[number], where].filter(Boolean).join(" "), ...values, difference].filter(Boolean).join(" | ");
  });
  byId("status").textContent = lines.filter(Boolean).join("\n");
}
