// Pickers, keys, the grid of layers and heads, themes.

function fill(select, names, chosen) {
  select.replaceChildren(...names.map(([value, text]) => {
    const option = make("option", "", text);
    option.value = value;
    return option;
  }));
  select.value = chosen;
}

const main = runs[0];
const offered = Object.keys(VIEWS).filter((name) => runs.every((run) => run.views.includes(name)));

function syncControls() {
  byId("layer").value = state.layer;
  byId("head").value = state.head;
  byId("view").value = state.view;
  byId("image").value = state.image;
  byId("direction").value = state.direction;
  const rolled = state.view === "rollout" && state.direction === "from";
  byId("layer").disabled = rolled;
  byId("head").disabled = rolled;
  byId("view").disabled = state.direction === "to";
  const several = told.images.length > 0 && image().levels.length > 1;
  byId("level-label").hidden = !several;
  if (!several) state.level = "all";
  byId("level").value = state.level;
}

function set(name, value) {
  state[name] = value;
  if (name === "image") { state.place = null; state.hover = null; }
  return repaint();
}

function step(name, count, by) {
  set(name, (state[name] + by + count) % count);
}

// The next token that has a row, in every run that has one there.
function stepToken(by) {
  state.direction = "from";
  const run = runs[0];
  for (let index = state.tokens[0] + by; index >= 0 && index < run.tokens.length; index += by) {
    if (run.tokens[index].row >= 0) return on.token(run, index);
  }
  return repaint();
}

const KEYS = {
  ArrowLeft: ["left", "token before", () => stepToken(-1)],
  ArrowRight: ["right", "token after", () => stepToken(1)],
  ArrowUp: ["up", "layer above", () => step("layer", main.layers.length, 1)],
  ArrowDown: ["down", "layer below", () => step("layer", main.layers.length, -1)],
  "]": ["]", "next head", () => step("head", main.heads.length, 1)],
  "[": ["[", "head before", () => step("head", main.heads.length, -1)],
  m: ["M", "mean of all layers and heads", () => { state.layer = 0; state.head = 0; repaint(); }],
  v: ["V", "next view", () => set("view", offered[(offered.indexOf(state.view) + 1) % offered.length])],
  d: ["D", "other direction", () => set("direction", state.direction === "from" ? "to" : "from")],
  i: ["I", "next image", () => told.images.length && step("image", told.images.length, 1)],
  t: ["T", "dark or light", () => theme()],
  "?": ["?", "these keys", () => help()],
};

document.addEventListener("keydown", (event) => {
  const inField = /^(SELECT|INPUT)$/.test(event.target.tagName);
  const known = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!known || inField || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  known[2]();
});

function theme(name) {
  const dark = name || (document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  document.documentElement.dataset.theme = dark;
  byId("theme").textContent = dark === "dark" ? "Light" : "Dark";
  repaint();
}

function help() {
  const shown = byId("keys").hidden;
  byId("keys").hidden = !shown;
  byId("help").setAttribute("aria-expanded", shown);
}

// Attention on the image of the chosen token, by layer (down) and head (across).
async function drawGrid() {
  const token = main.tokens[state.tokens[0]];
  const canvas = byId("grid");
  if (!token || token.row < 0) { canvas.hidden = true; return; }
  const masses = await main.single("mass");
  const down = main.layers.length;
  const across = main.heads.length;
  const size = Math.max(10, Math.min(22, Math.floor(1100 / across)));
  canvas.hidden = false;
  canvas.width = across * size;
  canvas.height = down * size;
  canvas.dataset.size = size;
  const context = canvas.getContext("2d");
  const value = (layer, head) => masses[(layer * across + head) * main.rows + token.row];
  let top = 1e-12;
  for (let layer = 0; layer < down; layer++) for (let head = 0; head < across; head++) top = Math.max(top, value(layer, head));
  for (let layer = 0; layer < down; layer++) {
    for (let head = 0; head < across; head++) {
      const [red, green, blue] = colourOf(value(layer, head), top, false);
      context.fillStyle = `rgb(${red},${green},${blue})`;
      context.fillRect(head * size, layer * size, size - 1, size - 1);
    }
  }
  outline(context, [state.head * size, state.layer * size, size - 1, size - 1], 1, false);
  byId("grid-text").textContent = `“${visible(token.text).trim()}” of ${main.name}: ${main.layers[state.layer]} ` +
    `(layer), ${main.heads[state.head]} (head): ${written(value(state.layer, state.head), VIEWS.raw)} on the image; the ` +
    `brightest is ${written(top, VIEWS.raw)}. First row and column: means. Click to choose.`;
}

byId("grid").addEventListener("click", (event) => {
  const box = byId("grid").getBoundingClientRect();
  const size = Number(byId("grid").dataset.size) * (box.width / byId("grid").width);
  state.head = Math.min(Math.floor((event.clientX - box.left) / size), main.heads.length - 1);
  state.layer = Math.min(Math.floor((event.clientY - box.top) / size), main.layers.length - 1);
  repaint();
});

function notes() {
  const lines = ["Attention shows where the model looks; it does not prove what caused the answer."];
  lines.push("Weights are stored in 8 bits: each is off by at most 0.4 % of the largest in its row.");
  for (const run of runs) {
    if (run.group > 1) {
      lines.push(`${run.name}: heads were averaged in groups of ${run.group} to keep this page small enough.`);
    }
    const extra = run.extra.filter((value) => value > 0);
    if (extra.length) {
      const mean = extra.reduce((sum, value) => sum + value, 0) / extra.length;
      lines.push(`${run.name}: ${written(mean, VIEWS.raw)} of the attention went to keys outside the sequence.`);
    }
  }
  for (const [number, shown] of told.images.entries()) {
    if (shown.reason) lines.push(`Image ${number + 1} is shown as its grid of patches: ${shown.reason}.`);
  }
  byId("notes").replaceChildren(...lines.map((line) => make("p", "", line)));
}

function begin() {
  byId("title").textContent = told.title;
  byId("subtitle").textContent = [told.model, runs.map((run) => run.name).join(" and ")].filter(Boolean).join(" · ");
  fill(byId("layer"), main.layers.map((name, index) => [index, name]), 0);
  fill(byId("head"), main.heads.map((name, index) => [index, name]), 0);
  fill(byId("view"), offered.map((name) => [name, VIEWS[name].name]), "raw");
  fill(byId("image"), told.images.map((_, index) => [index, String(index + 1)]), 0);
  fill(byId("level"), [["all", "thumbnail + tiles"], ["coarse", "thumbnail"], ["fine", "tiles"]], "all");
  byId("image-label").hidden = told.images.length < 2;
  for (const name of ["layer", "head", "image"]) {
    byId(name).addEventListener("change", (event) => set(name, Number(event.target.value)));
  }
  for (const name of ["view", "level", "direction"]) {
    byId(name).addEventListener("change", (event) => set(name, event.target.value));
  }
  byId("opacity").addEventListener("input", (event) => { state.opacity = event.target.value / 100; paint(); });
  byId("theme").addEventListener("click", () => theme());
  byId("help").addEventListener("click", help);
  byId("keys").replaceChildren(...Object.values(KEYS).map(([key, does]) => {
    const part = make("span");
    part.append(make("kbd", "", key), ` ${does}`);
    return part;
  }));
  window.addEventListener("resize", () => repaint());
  notes();
  theme(window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  repaint().then(() => { document.documentElement.dataset.ready = "yes"; });
}

begin();
