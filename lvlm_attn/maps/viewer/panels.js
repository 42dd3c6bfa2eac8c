// One panel for each run, and one for the difference.

function make(kind, className, text) {
  const element = document.createElement(kind);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// A token as people can see it.
function visible(text) {
  return text === "" ? "·" : text.replace(/\n/g, "↵\n").replace(/\t/g, "⇥");
}

class Panel {
  // run is null for the difference.
  constructor(run, parent, on) {
    this.run = run;
    this.element = make("section", "panel");
    const view = this.element.appendChild(make("div", "view"));
    const name = run ? run.name : "difference (second minus first)";
    const heading = view.appendChild(make("h2", "name", name));
    heading.title = name;
    // One line in every panel, so that the pictures stand beside each other at one height.
    const full = view.appendChild(make("p", "full", run && run.full !== run.name ? run.full : ""));
    full.title = full.textContent;
    full.hidden = !runs.some((other) => other.full && other.full !== other.name);
    this.said = view.appendChild(make("p", "said"));
    this.canvas = view.appendChild(make("canvas", "map"));
    this.bar = view.appendChild(make("canvas", "bar"));
    const ends = view.appendChild(make("div", "ends"));
    this.low = ends.appendChild(make("span"));
    this.unit = ends.appendChild(make("span"));
    this.high = ends.appendChild(make("span"));
    this.buttons = [];
    if (run) this.addTokens(on);
    const point = (event) => {
      const box = this.canvas.getBoundingClientRect();
      const [width, height] = on.image().size;
      return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
    };
    this.canvas.addEventListener("pointermove", (event) => on.hover(point(event)));
    this.canvas.addEventListener("pointerleave", () => on.hover(null));
    this.canvas.addEventListener("click", (event) => on.pick(point(event)));
    parent.append(this.element);
  }

  addTokens(on) {
    const list = this.element.appendChild(make("div", "tokens"));
    let last = "";
    this.run.tokens.forEach((token, index) => {
      const part = token.kind === "answer" ? "Answer" : "Prompt";
      if (part !== last) list.append(make("h3", "", part));
      last = part;
      const button = make("button", `token ${token.kind}${token.row < 0 ? " silent" : ""}`);
      button.type = "button";
      button.textContent = token.kind === "image" ? `[image ${token.image + 1}]` : visible(token.text);
      button.dataset.index = index;
      button.addEventListener("click", () => on.token(this.run, index));
      list.append(button);
      this.buttons.push(button);
    });
  }

  // Gives the canvas the shape of the picture, sharp on this screen.
  fit(image) {
    const [width, height] = image.size;
    const room = Math.max(this.canvas.parentElement.clientWidth, 120);
    const shown = Math.min(room, 560, (560 * width) / height);
    const wide = Math.max(shown, 24);
    const high = Math.max((shown * height) / width, 12);
    const dots = window.devicePixelRatio || 1;
    this.canvas.style.width = `${wide}px`;
    this.canvas.style.height = `${high}px`;
    this.canvas.width = Math.round(wide * dots);
    this.canvas.height = Math.round(high * dots);
  }

  // Shades tokens by numbers, one for each or null; the darkest is the largest.
  shade(values, chosen, describe) {
    const known = values.filter((value) => value !== null);
    const top = Math.max(...known.map(Math.abs), 1e-12);
    this.buttons.forEach((button, index) => {
      const value = values[index];
      const share = value === null ? 0 : Math.max(value, 0) / top;
      button.style.backgroundColor = share > 0 ? `rgba(var(--tint), ${(0.65 * share).toFixed(3)})` : "";
      button.classList.toggle("chosen", index === chosen);
      button.setAttribute("aria-pressed", index === chosen);
      button.title = describe(index, value);
    });
  }
}
