// Pictures with values on their patches.

// cividis, and purple to orange through light grey: both can be told apart in grey and by colour-blind eyes.
const SEQUENTIAL = ["#00224e", "#0e2f6b", "#35456c", "#4f576c", "#666970", "#7d7c78", "#958f78", "#b0a472", "#cbba69",
  "#e8d059", "#fee838"];
const DIVERGING = ["#2d004b", "#52307f", "#7b6caa", "#aca3cd", "#d5d5e7", "#f5f5f3", "#fbd8a9", "#f2ad5b", "#d17b1d",
  "#a45407", "#7f3b08"];

function table(stops) {
  const parts = stops.map((stop) => [1, 3, 5].map((at) => parseInt(stop.slice(at, at + 2), 16)));
  return Array.from({ length: 256 }, (_, step) => {
    const place = (step / 255) * (parts.length - 1);
    const low = Math.min(Math.floor(place), parts.length - 2);
    return parts[low].map((value, index) => Math.round(value + (place - low) * (parts[low + 1][index] - value)));
  });
}

const TABLES = { plain: table(SEQUENTIAL), signed: table(DIVERGING) };

function colourOf(value, top, signed) {
  const share = top > 0 ? value / top : 0;
  const step = Math.round(255 * (signed ? (share + 1) / 2 : share));
  return TABLES[signed ? "signed" : "plain"][Math.max(0, Math.min(255, step))];
}

// Where a cell lies in pixels of the picture: [left, top, width, height].
function boxOf(level, row, col) {
  const [left, top, right, bottom] = level.frame;
  const width = (right - left) / level.cols;
  const height = (bottom - top) / level.rows;
  return [left + col * width, top + row * height, width, height];
}

// The cell of a level at a point of the picture, or null.
function cellAt(level, x, y) {
  const [left, top, right, bottom] = level.frame;
  if (x < left || x >= right || y < top || y >= bottom) return null;
  const col = Math.min(Math.floor(((x - left) / (right - left)) * level.cols), level.cols - 1);
  const row = Math.min(Math.floor(((y - top) / (bottom - top)) * level.rows), level.rows - 1);
  return { row, col, key: level.keys[row * level.cols + col] };
}

// What is drawn of an image: one level, or all of them added up on the cells of the finest.
function cellsOf(image, which, values, ratio) {
  const last = image.levels.length - 1;
  const level = image.levels[which === "coarse" ? 0 : last];
  const cells = new Float32Array(level.keys.length);
  level.keys.forEach((key, index) => { cells[index] = key >= 0 ? values[key] : 0; });
  if (which === "all" && last > 0) {
    const coarse = image.levels[0];
    const [, , width, height] = boxOf(level, 0, 0);
    const [, , wide, high] = boxOf(coarse, 0, 0);
    for (let row = 0; row < level.rows; row++) {
      for (let col = 0; col < level.cols; col++) {
        const [x, y] = boxOf(level, row, col);
        const under = cellAt(coarse, x + width / 2, y + height / 2);
        if (!under || under.key < 0) continue;
        const index = row * level.cols + col;
        if (ratio) cells[index] = (cells[index] + values[under.key]) / 2;
        else cells[index] += (values[under.key] * width * height) / (wide * high);
      }
    }
  }
  return { level, cells };
}

function largest(cells, signed) {
  let top = 0;
  for (const value of cells) top = Math.max(top, signed ? Math.abs(value) : value);
  return top;
}

// Draws a picture, in grey below colours or plain where there are none.
function drawMap(canvas, image, picture, drawn, options) {
  const [width, height] = image.size;
  const scale = canvas.width / width;
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = "#8a9097";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = true;
  if (picture) {
    context.filter = drawn && options.opacity > 0 ? "grayscale(1)" : "none";
    context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    context.filter = "none";
  }
  context.setTransform(scale, 0, 0, scale, 0, 0);
  if (drawn) {
    const { level, cells } = drawn;
    context.globalAlpha = options.opacity;
    context.setTransform(1, 0, 0, 1, 0, 0); // edges on whole dots, so that no seam shows between cells
    for (let row = 0; row < level.rows; row++) {
      for (let col = 0; col < level.cols; col++) {
        const [x, y, w, h] = boxOf(level, row, col);
        const [red, green, blue] = colourOf(cells[row * level.cols + col], options.top, options.signed);
        const [left, top] = [Math.round(Math.max(x, 0) * scale), Math.round(Math.max(y, 0) * scale)];
        const right = Math.round(Math.min(x + w, width) * scale);
        const bottom = Math.round(Math.min(y + h, height) * scale);
        context.fillStyle = `rgb(${red},${green},${blue})`;
        if (right > left && bottom > top) context.fillRect(left, top, right - left, bottom - top);
      }
    }
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.globalAlpha = 1;
  }
  for (const mark of options.marks) outline(context, mark.box, scale, mark.dashed);
}

function outline(context, [x, y, width, height], scale, dashed) {
  for (const [colour, thick] of [["#ffffff", 4], ["#000000", 1.6]]) {
    context.strokeStyle = colour;
    context.lineWidth = thick / scale;
    context.setLineDash(dashed ? [4 / scale, 3 / scale] : []);
    context.strokeRect(x, y, width, height);
  }
  context.setLineDash([]);
}

function drawBar(canvas, signed) {
  canvas.width = 256;
  canvas.height = 1;
  const context = canvas.getContext("2d");
  TABLES[signed ? "signed" : "plain"].forEach(([red, green, blue], step) => {
    context.fillStyle = `rgb(${red},${green},${blue})`;
    context.fillRect(step, 0, 1, 1);
  });
}
