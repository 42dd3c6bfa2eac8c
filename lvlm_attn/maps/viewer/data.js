// What was run, and the weights as they were recorded.

const told = JSON.parse(document.getElementById("told").textContent);

// The bytes of a compressed block.
async function inflated(id) {
  const element = document.getElementById(id);
  const text = atob(element.textContent.trim());
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

// One run: its tokens, and its weights layer by layer as they are asked for.
class Run {
  constructor(about) {
    Object.assign(this, about);
    this.layerData = new Map();
    this.singles = new Map();
    this.means = new Map();
    this.tokenOfRow = new Map();
    this.tokens.forEach((token, index) => {
      if (token.row >= 0 && !this.tokenOfRow.has(token.row)) this.tokenOfRow.set(token.row, index);
    });
  }

  // Weights of a layer (0 is the mean of all): {top, small, heads}.
  async layer(index, id = `${this.id}-${index}`) {
    if (!this.layerData.has(id)) {
      this.layerData.set(id, inflated(id).then((buffer) => {
        const heads = Math.round(buffer.byteLength / (this.rows * (4 + this.keys)));
        const top = new Float32Array(buffer, 0, heads * this.rows);
        return { top, small: new Uint8Array(buffer, top.byteLength), heads };
      }));
    }
    return this.layerData.get(id);
  }

  async single(name) {
    const id = `${this.id}-${name}`;
    if (!this.singles.has(id)) this.singles.set(id, inflated(id).then((buffer) => new Float32Array(buffer)));
    return this.singles.get(id);
  }

  // The weights of one row: (keys,).
  row(data, head, row) {
    const at = head * this.rows + row;
    const top = data.top[at];
    const small = data.small.subarray(at * this.keys, (at + 1) * this.keys);
    return Float32Array.from(small, (step) => top * (step / 255) ** 2);
  }

  // The mean over all rows: (keys,).
  mean(data, layer, head) {
    const name = `${layer}/${head}`;
    if (!this.means.has(name)) {
      const sum = new Float32Array(this.keys);
      for (let row = 0; row < this.rows; row++) {
        const at = head * this.rows + row;
        const top = data.top[at];
        for (let key = 0; key < this.keys; key++) sum[key] += top * (data.small[at * this.keys + key] / 255) ** 2;
      }
      this.means.set(name, sum.map((value) => value / this.rows));
    }
    return this.means.get(name);
  }

  // The share of attention on image patches, (layers + 1, heads + 1, rows).
  async mass(layer, head, row) {
    const masses = await this.single("mass");
    return masses[(layer * this.heads.length + head) * this.rows + row];
  }
}

const runs = told.runs.map((about) => new Run(about));
