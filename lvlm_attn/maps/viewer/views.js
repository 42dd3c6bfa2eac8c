// Views of the weights, as lvlm_attn.maps.views defines them.

const VIEWS = {
  raw: { name: "raw weights", unit: "attention weight (%)", signed: false, ratio: false },
  no_sinks: { name: "sinks removed", unit: "attention weight (%)", signed: false, ratio: false },
  relative: { name: "minus the mean over tokens", unit: "above the mean over tokens (%)", signed: true, ratio: false },
  contrast: { name: "divided by a neutral prompt", unit: "ratio to the neutral prompt", signed: false, ratio: true },
  rollout: { name: "rollout through the layers", unit: "share of the rollout (%)", signed: false, ratio: false },
};

// The weights of one row under a view: (keys,).
async function rowUnder(run, view, layer, head, row) {
  if (view === "rollout") return run.row(await run.layer(0, `${run.id}-rollout`), 0, row);
  if (view === "contrast" && layer === 0) return run.row(await run.layer(0, `${run.id}-contrast`), head, row);
  const data = await run.layer(layer);
  const values = run.row(data, head, row);
  if (view === "no_sinks") for (const key of run.sinks[layer]) values[key] = 0;
  if (view === "relative") {
    const mean = run.mean(data, layer, head);
    for (let key = 0; key < values.length; key++) values[key] -= mean[key];
  }
  if (view === "contrast") {
    const neutral = await run.single("neutral");
    const start = ((layer - 1) * run.heads.length + head) * run.keys;
    for (let key = 0; key < values.length; key++) {
      const below = neutral[start + key];
      values[key] = below > 0 ? values[key] / (below + 1e-8) : 0;
    }
  }
  return values;
}

// What every row pays to some keys, in raw weights: (rows,).
async function columnOf(run, layer, head, keys) {
  const data = await run.layer(layer);
  const found = new Float32Array(run.rows);
  for (let row = 0; row < run.rows; row++) {
    const at = head * run.rows + row;
    for (const key of keys) found[row] += data.top[at] * (data.small[at * run.keys + key] / 255) ** 2;
  }
  return found;
}

// A number with the unit of a view.
function written(value, view) {
  if (view.ratio) return `${value.toPrecision(3)}x`;
  const percent = 100 * value;
  const digits = percent === 0 ? 0 : Math.max(1, Math.min(5, 1 - Math.floor(Math.log10(Math.abs(percent)))));
  const sign = view.signed && percent > 0 ? "+" : "";
  return `${sign}${percent.toFixed(Math.abs(percent) < 10 ? digits : 1)} %`;
}
