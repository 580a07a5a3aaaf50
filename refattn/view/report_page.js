
"use strict";
// Draws the maps of this page from the numbers in its element "data". All text goes in as text, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const redraw = [];
  let chosen = null;

  const theme = () => chosen ?? (dark.matches ? "dark" : "light");
  const MOST = 4; // powers of ten beyond the budget that have colours of their own

  // Within the budget grey, beyond it from yellow over red to violet; lightness changes all the way, so that it is seen in print too.
  const SCALES = {
    light: { within: [[250, 250, 248], [214, 216, 212]], beyond: [[250, 196, 92], [240, 128, 60], [214, 58, 74], [150, 24, 108], [72, 12, 96]] },
    dark: { within: [[28, 31, 38], [66, 72, 84]], beyond: [[126, 78, 22], [190, 82, 30], [232, 92, 74], [250, 146, 150], [255, 224, 232]] },
  };

  function element(kind, properties = {}, ...inside) {
    const { role, aria = {}, ...rest } = properties;
    const made = Object.assign(document.createElement(kind), rest);
    if (role) made.setAttribute("role", role);
    for (const [name, value] of Object.entries(aria)) made.setAttribute(`aria-${name}`, value);
    made.append(...inside);
    return made;
  }

  const between = (a, b, part) => a.map((x, i) => Math.round(x + (b[i] - x) * part));

  function along(colours, part) {
    const at = Math.min(Math.max(part, 0), 1) * (colours.length - 1);
    const below = Math.min(Math.floor(at), colours.length - 2);
    return between(colours[below], colours[below + 1], at - below);
  }

  // The colour of an error over its budget; null is infinite.
  function colour(ratio) {
    const { within, beyond } = SCALES[theme()];
    if (ratio === null) return beyond[beyond.length - 1];
    return ratio <= 1 ? along(within, ratio) : along(beyond, Math.log10(ratio) / MOST);
  }

  function said(ratio) {
    if (ratio === null) return "infinitely far beyond its budget";
    if (ratio === 0) return "no error";
    return `${ratio >= 1e4 ? ratio.toExponential(1) : Number(ratio.toPrecision(3))} × budget`;
  }

  // A canvas with several pixels a cell, so that hidden pairs can be hatched.
  const SIDE = 8;
  function hatch(context, x, y, share) {
    context.strokeStyle = theme() === "dark" ? "rgba(233, 235, 238, 0.42)" : "rgba(28, 32, 36, 0.42)";
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(x, y + SIDE);
    context.lineTo(x + SIDE, y);
    if (share === 0) {
      context.moveTo(x, y + SIDE / 2);
      context.lineTo(x + SIDE / 2, y);
      context.moveTo(x + SIDE / 2, y + SIDE);
      context.lineTo(x + SIDE, y + SIDE / 2);
    }
    context.stroke();
  }

  function canvas(rows, columns, { ratios, allowed }) {
    const made = element("canvas", { width: columns * SIDE, height: rows * SIDE });
    const paint = () => {
      const context = made.getContext("2d");
      for (let i = 0; i < rows * columns; i++) {
        const [x, y] = [(i % columns) * SIDE, Math.floor(i / columns) * SIDE];
        context.fillStyle = `rgb(${colour(ratios[i])})`;
        context.fillRect(x, y, SIDE, SIDE);
        if (allowed && allowed[i] < 1) hatch(context, x, y, allowed[i]);
      }
    };
    paint();
    redraw.push(paint);
    return made;
  }

  // The indices of a cell along one axis: "query 12", or "queries 16 to 31".
  function range(axis, cell, tile, size) {
    const first = cell * tile;
    const last = Math.min(first + tile, size) - 1;
    if (!axis.one && size === 1) return "";
    return first === last ? `${axis.one || "element"} ${first}` : `${axis.many || "elements"} ${first} to ${last}`;
  }

  // A figure whose cells can be pointed at, touched, and walked over with the arrow keys.
  function panel(map, one, moved) {
    const { rows, columns, tiles, sizes, axes } = map;
    const where = (i) => [range(axes[0], Math.floor(i / columns), tiles[0], sizes[0]), range(axes[1], i % columns, tiles[1], sizes[1])]
      .filter(Boolean).join(", ");
    const output = element("output", { aria: { live: "off" } });
    const cursor = element("div", { className: "cursor" });
    const aria = { label: `${map.title}${one.name ? `: ${one.name}` : ""}`, valuemin: 0, valuemax: rows * columns - 1, valuenow: 0, valuetext: "no cell chosen" };
    const stage = element("div", { className: "stage", tabIndex: 0, role: "slider", aria }, canvas(rows, columns, one), cursor);
    const shape = Math.min(Math.max(columns / rows, 0.6), 14); // long maps get cells that are not square
    stage.style.aspectRatio = `${shape}`;
    let at = null;
    const worst = one.ratios.reduce((best, x, i) => ((x ?? Infinity) > (one.ratios[best] ?? Infinity) ? i : best), 0);

    function show(i) {
      at = i ?? at;
      cursor.classList.toggle("on", i !== null);
      const cell = i ?? worst;
      const hidden = one.allowed ? (one.allowed[cell] === 0 ? ", masked" : one.allowed[cell] < 1 ? ", partly masked" : "") : "";
      const text = `${where(cell)}${hidden}`;
      output.replaceChildren(element("strong", { textContent: said(one.ratios[cell]) }), element("br"), i === null ? `worst: ${text}` : text);
      if (i === null) return;
      Object.assign(cursor.style, {
        left: `${(100 * (i % columns)) / columns}%`, top: `${(100 * Math.floor(i / columns)) / rows}%`,
        width: `${100 / columns}%`, height: `${100 / rows}%`,
      });
      stage.setAttribute("aria-valuenow", i);
      stage.setAttribute("aria-valuetext", `${text}: ${said(one.ratios[i])}`);
    }

    const under = (event) => {
      const box = stage.getBoundingClientRect();
      const column = Math.floor(((event.clientX - box.left - 1) / (box.width - 2)) * columns);
      const row = Math.floor(((event.clientY - box.top - 1) / (box.height - 2)) * rows);
      return Math.min(Math.max(row, 0), rows - 1) * columns + Math.min(Math.max(column, 0), columns - 1);
    };
    stage.addEventListener("pointermove", (event) => moved(under(event)));
    stage.addEventListener("pointerdown", (event) => moved(under(event)));
    stage.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") moved(null); });
    stage.addEventListener("focus", () => { if (stage.matches(":focus-visible")) moved(at ?? worst); });
    stage.addEventListener("blur", () => moved(null));
    stage.addEventListener("keydown", (event) => {
      const i = at ?? worst;
      const steps = {
        ArrowLeft: i % columns ? i - 1 : i, ArrowRight: (i + 1) % columns ? i + 1 : i,
        ArrowUp: i >= columns ? i - columns : i, ArrowDown: i + columns < rows * columns ? i + columns : i,
        Home: 0, End: rows * columns - 1,
      };
      if (!(event.key in steps)) return;
      event.preventDefault();
      moved(steps[event.key]);
    });
    show(null);
    const side = element("span", { className: "side", textContent: axes[0].many });
    const below = element("span", { className: "below", textContent: axes[1].many });
    const frame = element("div", { className: "frame", aria: {} }, side, stage, element("span"), below);
    return { show, made: element("figure", {}, frame, element("figcaption", {}, element("b", { textContent: one.name }), output)) };
  }

  function legend() {
    const bar = element("i");
    const made = element("div", { className: "legend", role: "img", aria: { label: "colours from no error, grey, over the budget, yellow, to 10000 times the budget" } },
      element("span", { textContent: "0" }), bar, element("span", { textContent: "10⁴ × budget" }));
    const paint = () => {
      const { within, beyond } = SCALES[theme()];
      const stops = [...within.map((c, i) => [c, 25 * i]), ...beyond.map((c, i) => [c, 25 + (75 * i) / (beyond.length - 1)])];
      bar.style.background = `linear-gradient(to right, ${stops.map(([c, at]) => `rgb(${c}) ${at}%`).join(", ")})`;
    };
    paint();
    redraw.push(paint);
    return made;
  }

  function hidden() {
    const sample = element("canvas", { width: 2 * SIDE, height: 2 * SIDE });
    const paint = () => {
      const context = sample.getContext("2d");
      context.fillStyle = `rgb(${colour(0)})`;
      context.fillRect(0, 0, 2 * SIDE, 2 * SIDE);
      for (const [x, y] of [[0, 0], [SIDE, 0], [0, SIDE], [SIDE, SIDE]]) hatch(context, x, y, 0);
    };
    paint();
    redraw.push(paint);
    return element("span", { className: "key" }, sample, "masked");
  }

  function draw(map, drawn) {
    const panels = map.panels.map((one) => panel(map, one, (i) => { for (const p of panels) p.show(i); }));
    const flat = map.columns > 4 * map.rows;
    const layout = flat ? "panels flat" : panels.length === 1 ? "panels single" : map.columns <= 16 && panels.length > 4 ? "panels small" : "panels";
    const tools = element("div", { className: "tools" }, legend(), ...(map.panels.some((p) => p.allowed) ? [hidden()] : []));
    const cells = map.tiles[0] * map.tiles[1] > 1 ? ` A cell is ${map.tiles[0]} by ${map.tiles[1]}.` : "";
    const note = `${map.note}${cells}`.trim();
    drawn.append(element("div", { className: "map" }, element("h3", { textContent: map.title }),
      ...(note ? [element("p", { className: "note", textContent: note })] : []), tools, element("div", { className: layout }, ...panels.map((p) => p.made))));
  }

  const button = document.getElementById("theme");
  function apply() {
    if (chosen) root.dataset.theme = chosen;
    button.textContent = theme() === "dark" ? "Light theme" : "Dark theme";
    for (const paint of redraw) paint();
  }
  button.hidden = false;
  button.addEventListener("click", () => { chosen = theme() === "dark" ? "light" : "dark"; apply(); });
  dark.addEventListener("change", apply);

  data.pictures.forEach((maps, i) => { for (const map of maps) draw(map, document.getElementById(`drawn-${i}`)); });
  apply();
})();
