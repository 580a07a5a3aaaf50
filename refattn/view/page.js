
"use strict";
// Draws the heat maps of this page from the numbers in its element "data". All text goes in as text, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const redraw = [];
  let chosen = null;

  const theme = () => chosen ?? (dark.matches ? "dark" : "light");

  function element(kind, properties = {}, ...inside) {
    const { role, aria = {}, ...rest } = properties;
    const made = Object.assign(document.createElement(kind), rest);
    if (role) made.setAttribute("role", role);
    for (const [name, value] of Object.entries(aria)) made.setAttribute(`aria-${name}`, value);
    made.append(...inside);
    return made;
  }

  const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const between = (a, b, part) => a.map((x, i) => Math.round(x + (b[i] - x) * part));
  const scales = Object.fromEntries(Object.entries(data.scales).map(([name, colours]) => [name, colours.map(rgb)]));

  // The colour of a number between low and high; null where there is none.
  function colour(value, low, high) {
    if (value === null) return null;
    const scale = scales[theme()];
    const at = Math.min(Math.max((value - low) / (high - low || 1), 0), 1) * (scale.length - 1);
    const below = Math.min(Math.floor(at), scale.length - 2);
    return between(scale[below], scale[below + 1], at - below);
  }

  function pixel(i) {
    const { channels, low, high, ink } = data.image;
    const part = channels.map((c) => (c[i] === null ? 0 : (c[i] - low) / (high - low || 1)));
    if (part.length === 3) return part.map((p) => Math.round(255 * p));
    const light = theme() === "light" && ink;
    return between(light ? [255, 255, 255] : [14, 16, 20], light ? [20, 22, 26] : [255, 255, 255], part[0]);
  }

  function number(x) {
    if (x === null) return "not finite";
    const size = Math.abs(x);
    return Number.isInteger(x) && size < 1e6 ? String(x) : size < 1e-3 ? x.toExponential(2) : size <= 1 ? x.toFixed(4) : String(Number(x.toPrecision(5)));
  }

  // A small canvas, one pixel a cell, that the style sheet makes large.
  function canvas(rows, columns, cell, className = "") {
    const made = element("canvas", { width: columns, height: rows, className });
    const paint = () => {
      const context = made.getContext("2d");
      const pixels = context.createImageData(columns, rows);
      for (let i = 0; i < rows * columns; i++) {
        const c = cell(i);
        const missing = (i + Math.floor(i / columns)) % 2 ? [120, 120, 120] : [170, 170, 170];
        pixels.data.set([...(c ?? missing), 255], 4 * i);
      }
      context.putImageData(pixels, 0, 0);
    };
    paint();
    redraw.push(paint);
    return { made, paint };
  }

  const pale = ([r, g, b]) => 0.299 * r + 0.587 * g + 0.114 * b > 140;

  // The ink of a small picture as dots of that area, on cells whose colours stay as they are.
  function dots(rows, columns, cell) {
    const { rows: height, columns: width, channels, low, high } = data.image;
    const side = 48;
    const made = element("canvas", { width: side * width, height: side * height, className: "over image" });
    const paint = () => {
      const context = made.getContext("2d");
      context.clearRect(0, 0, made.width, made.height);
      channels[0].forEach((ink, i) => {
        const [y, x] = [Math.floor(i / width), i % width];
        const below = cell(Math.floor((y * rows) / height) * columns + Math.floor((x * columns) / width)) ?? [128, 128, 128];
        context.fillStyle = pale(below) ? "#14161bd0" : "#ffffffd8";
        context.beginPath();
        context.arc((x + 0.5) * side, (y + 0.5) * side, 0.36 * side * Math.sqrt(Math.max(((ink ?? 0) - low) / (high - low), 0)), 0, 7);
        context.fill();
      });
    };
    paint();
    redraw.push(paint);
    return { made, paint };
  }

  function place(box, i, rows, columns) {
    box.classList.toggle("on", i !== null);
    if (i === null) return;
    Object.assign(box.style, {
      left: `${(100 * (i % columns)) / columns}%`, top: `${(100 * Math.floor(i / columns)) / rows}%`,
      width: `${100 / columns}%`, height: `${100 / rows}%`,
    });
  }

  // A figure whose cells can be pointed at, touched, and walked over with the arrow keys.
  function grid({ rows, columns, name, layers, say, rest, moved, picked }) {
    const output = element("output", { aria: { live: "off" } });
    const cursor = element("div", { className: "cursor" });
    const pin = element("div", { className: "pin" });
    const aria = { label: name || "map", valuemin: 0, valuemax: rows * columns - 1, valuenow: 0, valuetext: "no cell chosen" };
    const stage = element("div", { className: "stage", tabIndex: 0, role: "slider", aria }, ...layers.map((l) => l.made), pin, cursor);
    stage.style.aspectRatio = `${columns} / ${rows}`;
    const caption = element("figcaption", {}, element("b", { textContent: name }), output);
    let at = null;

    function show(i) {
      at = i ?? at;
      place(cursor, i, rows, columns);
      const { value, where } = i === null ? rest() : say(i);
      output.replaceChildren(...(value ? [element("strong", { textContent: value }), element("br")] : []), where);
      if (i === null) return;
      stage.setAttribute("aria-valuenow", i);
      stage.setAttribute("aria-valuetext", `${where}: ${value}`);
    }

    const under = (event) => {
      const box = stage.getBoundingClientRect();
      const column = Math.floor(((event.clientX - box.left - 1) / (box.width - 2)) * columns);
      const row = Math.floor(((event.clientY - box.top - 1) / (box.height - 2)) * rows);
      return Math.min(Math.max(row, 0), rows - 1) * columns + Math.min(Math.max(column, 0), columns - 1);
    };
    stage.addEventListener("pointermove", (event) => moved(under(event)));
    stage.addEventListener("pointerdown", (event) => { moved(under(event)); picked?.(under(event)); });
    stage.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") moved(null); });
    stage.addEventListener("focus", () => { if (stage.matches(":focus-visible")) moved(at ?? 0); });
    stage.addEventListener("blur", () => moved(null));
    stage.addEventListener("keydown", (event) => {
      const i = at ?? 0;
      const steps = {
        ArrowLeft: i % columns ? i - 1 : i, ArrowRight: (i + 1) % columns ? i + 1 : i,
        ArrowUp: i >= columns ? i - columns : i, ArrowDown: i + columns < rows * columns ? i + columns : i,
        Home: 0, End: rows * columns - 1, Enter: i, " ": i,
      };
      if (!(event.key in steps)) return;
      event.preventDefault();
      moved(steps[event.key]);
      if (event.key === "Enter" || event.key === " ") picked?.(i);
    });
    const paint = () => { for (const layer of layers) layer.paint(); };
    const settle = () => { if (!cursor.classList.contains("on")) show(null); };
    settle();
    return { settle, made: element("figure", {}, stage, caption), show, paint, mark: (i) => place(pin, i, rows, columns) };
  }

  const spot = (i, rows, columns) => (rows === 1 ? `position ${i}` : `row ${Math.floor(i / columns)}, column ${i % columns}`);
  const grey = (i) => new Array(3).fill(Math.round([0.299, 0.587, 0.114].reduce((sum, part, c) => sum + part * pixel(i)[c], 0)));
  const underlay = () => canvas(data.image.rows, data.image.columns, grey); // the colours are the map's
  const picture = () => canvas(data.image.rows, data.image.columns, pixel);

  function legend(map) {
    const [low, bar, high] = [element("span"), element("i"), element("span")];
    const made = element("div", { className: "legend", role: "img" }, low, bar, high);
    const paint = () => {
      bar.style.background = `linear-gradient(to right, ${data.scales[theme()].join(", ")})`;
      low.textContent = number(map.low);
      high.textContent = number(map.high);
      made.setAttribute("aria-label", `colours from ${low.textContent} to ${high.textContent}`);
    };
    paint();
    redraw.push(paint);
    return made;
  }

  function checkbox(text, checked, changed) {
    const box = element("input", { type: "checkbox", checked });
    box.addEventListener("change", () => changed(box.checked));
    return element("label", {}, box, text);
  }

  // Shows or hides the picture: dots on the maps, or a picture that shines through the maps that lie on it.
  function addOverlay(tools, drawn) {
    const dotted = drawn.querySelector("canvas.image.over");
    const change = (on) => {
      for (const c of drawn.querySelectorAll("canvas.over")) c.style.opacity = c.classList.contains("image") ? Number(on) : on ? 0.7 : 1;
    };
    tools.append(checkbox(dotted ? "image as dots" : "show the image", true, change));
    change(true);
  }

  // All maps of one mechanism point at the same cell, each with its own number.
  function linked(map, options) {
    const { rows, columns, over } = map;
    const grids = map.panels.map((panel) => {
      const { cell, say, value, among = () => [0, rows * columns] } = options(panel);
      const dotted = over && data.image.ink && data.image.channels.length === 1 && data.image.rows * data.image.columns <= 1024;
      const drawn = canvas(rows, columns, cell, over && !dotted ? "over" : "");
      const largest = () => {
        const [first, end] = among();
        let most = first;
        for (let i = first + 1; i < end; i++) if (value(i) > (value(most) ?? -Infinity)) most = i;
        const { value: text, where } = say(most);
        return { value: text, where: `largest: ${where}` };
      };
      return grid({
        rows, columns, say, rest: largest, name: panel.name,
        layers: dotted ? [drawn, dots(rows, columns, cell)] : over ? [underlay(), drawn] : [drawn],
        moved: (i) => { for (const g of grids) g.show(i); options.moved?.(i); },
        picked: options.picked,
      });
    });
    return grids;
  }

  function positions(map, drawn) {
    const grids = linked(map, ({ values }) => ({
      cell: (i) => colour(values[i], map.low, map.high),
      value: (i) => values[i],
      say: (i) => ({ value: number(values[i]), where: spot(i, map.rows, map.columns) }),
    }));
    const tools = element("div", { className: "tools" }, legend(map));
    drawn.append(tools, element("div", { className: grids.length === 1 ? "panels lone" : "panels" }, ...grids.map((g) => g.made)));
    if (map.over) addOverlay(tools, drawn);
    addStretch(tools, map);
  }

  // Gives all colours to the numbers that there are, where they are close to each other.
  function addStretch(tools, map) {
    const whole = [map.low, map.high];
    const found = [Infinity, -Infinity];
    for (const { values } of map.panels) {
      for (const x of values) if (x !== null) found.splice(0, 2, Math.min(found[0], x), Math.max(found[1], x));
    }
    if (!(found[0] < found[1])) return;
    tools.append(checkbox("stretch the colours", false, (on) => {
      [map.low, map.high] = on ? found : whole;
      for (const paint of redraw) paint();
    }));
  }

  // Sections with as many queries follow each other.
  const following = new Map();

  // Weights over the patches of the image, for one query or for the mean of all.
  function patches(map, drawn) {
    const { rows, columns, queries } = map;
    const keys = rows * columns;
    const square = queries === keys;
    let pinned = square ? striking(rows, columns) : 0;
    let query = pinned; // null is the mean of all
    const means = map.panels.map(({ values }) => Array.from({ length: keys }, (_, k) => {
      let sum = 0;
      for (let q = 0; q < queries; q++) sum += values[q * keys + k] ?? NaN;
      return Number.isFinite(sum) ? sum / queries : null;
    }));
    const named = (q) => (q === null ? "all (mean)" : square ? spot(q, rows, columns) : `${q}`);
    const grids = linked(map, (panel) => {
      const value = (k) => (query === null ? means[map.panels.indexOf(panel)][k] : panel.values[query * keys + k]);
      return {
        value,
        cell: (k) => colour(value(k), map.low, map.high),
        say: (k) => ({ value: number(value(k)), where: spot(k, rows, columns) }),
      };
    });
    const tools = element("div", { className: "tools" }, legend(map));
    const panels = element("div", { className: "panels" }, ...grids.map((g) => g.made));
    if (queries === 1) {
      drawn.append(tools, panels);
    } else {
      const [r, c] = square ? [rows, columns] : [1, queries];
      const all = following.get(queries) ?? [];
      following.set(queries, [...all, { ask, pick }]);
      const each = (what, q) => { for (const section of following.get(queries)) section[what](q); };
      const say = (q) => ({ value: named(q), where: "choose: click, touch, or Enter" });
      const chooser = grid({
        rows: r, columns: c, name: square ? "Query: looks from here" : "Query: who looks", say, rest: () => say(query),
        layers: [square ? picture() : canvas(1, queries, (q) => colour(q % 2 ? 0.2 : 0.1, 0, 1))],
        moved: (q) => { chooser.show(q); if (pinned !== null) each("ask", q ?? pinned); },
        picked: (q) => each("pick", q),
      });
      const mean = checkbox("mean of all queries", false, (on) => each("pick", on ? null : striking(rows, columns)));
      tools.append(mean);
      drawn.append(tools, element("div", { className: "split" }, element("div", { className: "panels one" }, chooser.made), panels));

      function ask(q) {
        query = q;
        for (const g of grids) { g.paint(); g.mark(square ? q : null); g.settle(); }
        chooser.mark(q);
        chooser.settle();
      }
      function pick(q) {
        pinned = q;
        mean.querySelector("input").checked = q === null;
        ask(q);
      }
      ask(pinned);
    }
    if (map.over) addOverlay(tools, drawn);
  }

  // The patch with most ink or light: where something is to be seen.
  function striking(rows, columns) {
    const { channels, rows: height, columns: width } = data.image;
    const sums = new Array(rows * columns).fill(0);
    channels[0].forEach((x, i) => {
      sums[Math.floor((Math.floor(i / width) * rows) / height) * columns + Math.floor(((i % width) * columns) / width)] += x ?? 0;
    });
    return sums.indexOf(Math.max(...sums));
  }

  // A table of queries and keys, and below it the row of one query.
  function pairs(map, drawn) {
    const { rows, columns } = map;
    const row = (q) => (map.rowTokens ? `${q} “${data.tokens[q]}”` : `${q}`);
    const column = (k) => (map.columnTokens ? `${k} “${data.tokens[k]}”` : `${k}`);
    let pinned = rows - 1; // under a causal mask, the query that sees most
    let query = pinned;
    const strips = [];
    const ask = (q) => {
      query = q ?? pinned;
      for (const paint of strips) paint();
      for (const g of grids) g.settle();
    };
    const options = ({ values }) => ({
      cell: (i) => colour(values[i], map.low, map.high),
      value: (i) => values[i],
      among: () => [query * columns, (query + 1) * columns],
      say: (i) => ({ value: number(values[i]), where: `query ${row(Math.floor(i / columns))} → key ${column(i % columns)}` }),
    });
    options.moved = (i) => ask(i === null ? null : Math.floor(i / columns));
    options.picked = (i) => pick(Math.floor(i / columns));
    const grids = linked(map, options);
    const buttons = map.rowTokens ? data.tokens.map((t, q) => {
      const button = element("button", { type: "button", textContent: t, aria: { pressed: q === pinned, label: `query ${row(q)}` } });
      button.addEventListener("pointerenter", (event) => { if (event.pointerType === "mouse") ask(q); });
      button.addEventListener("pointerleave", () => ask(null));
      button.addEventListener("click", () => pick(q));
      return button;
    }) : [];
    const pick = (q) => { pinned = q; buttons.forEach((b, i) => b.setAttribute("aria-pressed", i === q)); ask(q); };
    if (rows <= 24 && columns <= 24 && (map.rowTokens || map.columnTokens)) grids.forEach((g) => addAxes(g.made, map));
    if (map.columnTokens) grids.forEach((g, p) => g.made.append(strip(map.panels[p], () => query, columns, map, strips)));
    drawn.append(element("div", { className: "tools" }, legend(map)));
    if (buttons.length) drawn.append(element("h3", { textContent: "Query: who looks" }), element("div", { className: "tokens strip" }, ...buttons));
    drawn.append(element("div", { className: "panels wide" }, ...grids.map((g) => g.made)));
    ask(pinned);
  }

  // Tokens beside the rows and above the columns of a small table; a pointer reads them out in full.
  function addAxes(figure, { rows, columns, rowTokens, columnTokens }) {
    const axis = (className, count, known) => element("div", { className, aria: { hidden: true } },
      ...Array.from({ length: count }, (_, i) => element("span", { textContent: known ? data.tokens[i] : i })));
    const table = element("div", { className: "axes" }, element("span"), axis("above", columns, columnTokens), axis("beside", rows, rowTokens));
    figure.prepend(table);
    table.append(figure.querySelector(".stage"));
  }

  // The keys as words, each on the colour of what the query gives it.
  function strip({ values }, query, columns, { low, high }, strips) {
    const words = data.tokens.map((t) => element("li", { textContent: t }));
    const paint = () => words.forEach((word, k) => {
      const value = values[query() * columns + k];
      const c = colour(value, low, high) ?? [128, 128, 128];
      word.style.background = `rgb(${c})`;
      word.style.color = pale(c) ? "#101216" : "#ffffff";
      word.title = number(value);
    });
    strips.push(paint);
    redraw.push(paint);
    return element("ol", { className: "tokens", aria: { label: "Keys, coloured by their weight" } }, ...words);
  }

  function input() {
    const { rows, columns, channels } = data.image;
    const shown = grid({
      rows, columns, name: `Image, ${rows} by ${columns} pixels`, layers: [picture()],
      say: (i) => ({ value: channels.map((c) => number(c[i])).join(", "), where: spot(i, rows, columns) }),
      rest: () => ({ value: "", where: "Point at any cell of the page, touch it, or walk with the arrow keys." }),
      moved: (i) => shown.show(i),
    });
    document.getElementById("image").append(shown.made);
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

  if (data.image) input();
  data.maps.forEach((map, i) => { if (map) ({ positions, patches, pairs })[map.form](map, document.getElementById(`drawn-${i}`)); });
  apply();
})();
