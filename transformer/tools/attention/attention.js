"use strict";

/** Elements, text and numbers, for attention and for the page that is served. All text is written as text. */
const page = {
  element(name, properties = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(properties)) {
      if (key in made) made[key] = value;
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  },

  /** Text of a piece that can be seen: spaces, line breaks and what has no shape get a sign or their number. */
  visible(piece) {
    const signs = { " ": "␣", "\n": "⏎", "\t": "⇥", "": "∅" };
    if (piece in signs) return signs[piece];
    return piece.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (sign) =>
      /[\u200c\u200d]/.test(sign) && piece.length > 1 ? sign : `<${sign.codePointAt(0).toString(16)}>`,
    );
  },

  /** "rtl" if the first letter of a text belongs to a script that runs from right to left. */
  direction(text) {
    const letter = /\p{L}/u.exec(text);
    const leftwards = /[\p{Script=Hebrew}\p{Script=Arabic}\p{Script=Syriac}\p{Script=Thaana}\p{Script=Nko}]/u;
    return letter && leftwards.test(letter[0]) ? "rtl" : "ltr";
  },

  percent(share) {
    if (share > 0 && share < 0.0001) return "<\u00a00.01\u00a0%";
    const hundredths = share > 0 && share < 0.01 ? (share * 100).toPrecision(1) : Math.round(share * 100);
    return `${hundredths}\u00a0%`;
  },
};

/*
 * showAttention(root, attended) draws all attention of one pass into the element root.
 *
 * attended is what `python -m transformer attention --output x.json` writes (docs/attention.md). In place of the lists
 * of weights an entry may have `packed`: in base64, deflated, a byte for each weight, 255 times its square root.
 * All text is written as text. Nothing is loaded.
 */
async function showAttention(root, attended) {
  const { element, visible, direction, percent } = page;
  const NAMES = { encoder: "Encoder self-attention", decoder: "Decoder self-attention", cross: "Cross-attention" };
  const SIDES = { source: "Source", target: "Target", read: "Read so far", text: "Text" };
  const SMALL = 96; // pixels of a small map at most, before it is scaled
  const WHOLE_TABLE = 4096; // cells; a larger table has the strongest of each row alone
  const STRONGEST = 8;
  const LABEL = 110; // pixels for the labels of rows or columns at most

  const kinds = Object.keys(attended.attention);
  const maps = {};
  for (const kind of kinds) maps[kind] = await unpacked(attended.attention[kind]);
  const state = {
    kind: kinds.at(-1),
    layer: maps[kinds.at(-1)].layers - 1,
    head: 0,
    row: 0,
    column: -1,
    relative: false,
  };
  state.head = averageOf(maps[state.kind]);
  state.relative = Math.max(...kinds.map((kind) => maps[kind].columns)) > 64;

  // ---- Weights ----

  /** The layers, heads, rows and columns of an entry, and map(layer, head): its weights, row by row. */
  async function unpacked(entry) {
    const { layers, heads } = entry;
    const rows = attended.sides[entry.queries].pieces.length;
    const columns = attended.sides[entry.keys].pieces.length;
    const size = rows * columns;
    const bytes = entry.packed === undefined ? null : await inflated(entry.packed);
    const squares = Float32Array.from({ length: 256 }, (_, i) => (i / 255) ** 2);

    function one(layer, head) {
      if (bytes === null) return Float32Array.from(entry.weights[layer][head].flat());
      const weights = new Float32Array(size);
      const start = (layer * heads + head) * size;
      for (let i = 0; i < size; i++) weights[i] = squares[bytes[start + i]];
      return weights;
    }

    /** The weights of a head; of head number `heads`, the mean over all heads. */
    function map(layer, head) {
      if (head < heads) return one(layer, head);
      const mean = new Float32Array(size);
      for (let h = 0; h < heads; h++) {
        const weights = one(layer, h);
        for (let i = 0; i < size; i++) mean[i] += weights[i] / heads;
      }
      return mean;
    }
    return { layers, heads, rows, columns, map };
  }

  async function inflated(text) {
    const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  function averageOf({ heads }) {
    return heads > 1 ? heads : 0;
  }

  // ---- Elements ----

  const entry = () => attended.attention[state.kind];
  const queries = () => attended.sides[entry().queries];
  const keys = () => attended.sides[entry().keys];
  const headName = (head) => (head < maps[state.kind].heads ? `head ${head + 1}` : "mean of heads");

  function described() {
    if (state.kind === "cross") return "Each row is a piece that the model writes; each column a piece of the source.";
    if (entry().queries !== entry().keys)
      return "Each row is a piece that the model writes; each column a piece that it has read before.";
    if (state.kind === "decoder")
      return "Each row is a piece that the model has just read; each column a piece so far.";
    return "Each row is a piece; each column a piece that it takes something from.";
  }

  const texts = element("dl", { className: "texts" });
  for (const [name, side] of Object.entries(attended.sides)) {
    if (side.text === undefined) continue;
    const total = (side.log_probs ?? []).reduce((sum, each) => sum + (each ?? 0), 0);
    const score = side.log_probs ? ` (log-probability ${total.toFixed(2)})` : "";
    const text = element("span", { dir: direction(side.text), textContent: side.text });
    texts.append(element("dt", { textContent: SIDES[name] ?? name }), element("dd", {}, text, score));
  }
  const kindPicker = element("fieldset", { className: "kinds", hidden: kinds.length < 2 });
  kindPicker.append(element("legend", { className: "hidden", textContent: "Kind of attention" }));
  for (const kind of kinds) {
    const input = element("input", { type: "radio", name: "kind", value: kind, checked: kind === state.kind });
    input.addEventListener("change", () => chooseKind(kind));
    kindPicker.append(element("label", {}, input, NAMES[kind] ?? kind));
  }
  const description = element("p");
  const relative = element("input", { type: "checkbox", checked: state.relative });
  relative.addEventListener("change", () => {
    state.relative = relative.checked;
    drawAll();
  });
  const legend = element("div", { className: "legend", "aria-hidden": "true" });
  const mapPicker = element("fieldset", { className: "scroll" });
  const title = element("h2");
  const queryTitle = element("h3", { id: "attention-queries" });
  const keyTitle = element("h3", { id: "attention-keys" });
  const queryPieces = element("div", { className: "pieces", role: "group", "aria-labelledby": queryTitle.id });
  const keyPieces = element("div", { className: "pieces", role: "group", "aria-labelledby": keyTitle.id });
  const readout = element("p", { className: "readout", "aria-live": "polite" });
  const matrix = element("canvas", { className: "matrix", role: "img" });
  const matrixBox = element(
    "div",
    { className: "scroll", tabIndex: 0, role: "region", "aria-label": "Heat map" },
    matrix,
  );
  const tableBox = element("div", {
    className: "scroll",
    tabIndex: 0,
    role: "region",
    "aria-label": "Table of weights",
  });
  const details = element("details", {}, element("summary", { textContent: "The same as a table" }), tableBox);
  details.addEventListener("toggle", fillTable);
  const view = element("section", { "aria-label": "One map" });
  view.append(title, queryTitle, queryPieces, readout, keyTitle, keyPieces, matrixBox, details);
  const left = element("section", { "aria-label": "All maps" }, mapPicker, legend);
  left.append(
    element("label", { className: "scale" }, relative, "Scale the colours of each map to its largest weight"),
  );
  const heading = root.tagName === "MAIN" ? "h1" : "h2";
  root.replaceChildren(element(heading, { textContent: "Attention" }), texts, kindPicker, description);
  root.append(element("div", { className: "panes" }, left, view));

  // ---- Colours ----

  function colour(name) {
    const digits = getComputedStyle(root).getPropertyValue(name).trim().slice(1);
    return [0, 2, 4].map((at) => parseInt(digits.slice(at, at + 2), 16));
  }

  /** The colours of 256 weights, from 0 to the largest: evenly spaced by their square roots. */
  function palette() {
    const [low, high] = [colour("--low"), colour("--high")];
    return Array.from({ length: 256 }, (_, i) => low.map((from, c) => Math.round(from + ((high[c] - from) * i) / 255)));
  }

  function largestOf(weights) {
    return state.relative ? weights.reduce((most, each) => Math.max(most, each), 1e-9) : 1;
  }

  /** Draw weights into a canvas with a pixel for each; of large maps, one for the largest weight of several. */
  function drawSmall(canvas, weights, rows, columns, colours) {
    const step = Math.ceil(Math.max(rows, columns) / SMALL);
    canvas.width = Math.ceil(columns / step);
    canvas.height = Math.ceil(rows / step);
    const pooled = new Float32Array(canvas.width * canvas.height);
    for (let row = 0; row < rows; row++) {
      const start = Math.floor(row / step) * canvas.width;
      for (let column = 0; column < columns; column++) {
        const at = start + Math.floor(column / step);
        pooled[at] = Math.max(pooled[at], weights[row * columns + column]);
      }
    }
    canvas.getContext("2d").putImageData(image(pooled, canvas.width, canvas.height, largestOf(weights), colours), 0, 0);
  }

  function image(weights, width, height, largest, colours) {
    const pixels = new ImageData(width, height);
    for (let i = 0; i < weights.length; i++) {
      const [red, green, blue] = colours[Math.min(255, Math.round(255 * Math.sqrt(weights[i] / largest)))];
      pixels.data.set([red, green, blue, 255], 4 * i);
    }
    return pixels;
  }

  function drawLegend(colours) {
    const canvas = element("canvas", { width: 256, height: 1 });
    const squares = Float32Array.from({ length: 256 }, (_, i) => (i / 255) ** 2);
    canvas.getContext("2d").putImageData(image(squares, 256, 1, 1, colours), 0, 0);
    legend.replaceChildren(canvas);
    for (const weight of [0, 0.05, 0.25, 0.5, 1]) {
      const mark = element("span", { textContent: percent(weight) });
      mark.style.left = `${100 * Math.sqrt(weight)}%`;
      legend.append(mark);
    }
    legend.title = state.relative ? "Shares of the largest weight of each map" : "Weights";
  }

  // ---- Small multiples ----

  function buildMaps() {
    const { layers, heads, rows, columns } = maps[state.kind];
    const across = heads > 1 ? heads + 1 : 1;
    const ratio = Math.max(0.5, Math.min(2, columns / rows));
    const grid = element("div", { className: "maps" });
    grid.style.gridTemplateColumns = `max-content repeat(${across}, minmax(2.75rem, 9rem))`;
    grid.append(element("span"));
    for (let head = 0; head < across; head++)
      grid.append(element("span", { textContent: head < heads ? `${head + 1}` : "mean", "aria-hidden": "true" }));
    for (let layer = 0; layer < layers; layer++) {
      grid.append(element("span", { textContent: `layer ${layer + 1}`, "aria-hidden": "true" }));
      for (let head = 0; head < across; head++) grid.append(mapButton(layer, head, ratio));
    }
    const told = element("legend", {
      className: "hidden",
      textContent: `${NAMES[state.kind] ?? state.kind}: layer and head`,
    });
    mapPicker.replaceChildren(told, grid);
    mapPicker.onkeydown = (event) => {
      const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      chooseMap(Math.min(layers - 1, Math.max(0, state.layer + by)), state.head);
      chosenInput().focus();
    };
  }

  function mapButton(layer, head, ratio) {
    const name = `layer ${layer + 1}, ${headName(head)}`;
    const input = element("input", { type: "radio", name: "map", className: "hidden", "aria-label": name });
    input.addEventListener("change", () => chooseMap(layer, head));
    const label = element("label", { title: name }, input, element("canvas", { className: "sharp" }));
    label.style.aspectRatio = ratio;
    label.addEventListener("click", () => view.scrollIntoView({ block: "nearest" }));
    return label;
  }

  const chosenInput = () =>
    mapPicker.querySelectorAll("input")[state.layer * (averageOf(maps[state.kind]) + 1) + state.head];

  function drawMaps(colours) {
    const { layers, heads, rows, columns, map } = maps[state.kind];
    const canvases = mapPicker.querySelectorAll("canvas");
    const across = canvases.length / layers;
    canvases.forEach((canvas, i) => {
      drawSmall(canvas, map(Math.floor(i / across), i % across), rows, columns, colours);
    });
  }

  // ---- One map, large ----

  let weights; // of the map that is shown

  function buildPieces() {
    const side = (name) => SIDES[name] ?? name;
    queryTitle.textContent = `${side(entry().queries)}: point at a piece, or use the arrow keys`;
    keyTitle.textContent =
      entry().queries === entry().keys ? "Takes from" : `${side(entry().keys)}: what it takes from`;
    queryPieces.dir = direction(queries().text ?? queries().pieces.join(""));
    keyPieces.dir = direction(keys().text ?? keys().pieces.join(""));
    queryPieces.replaceChildren(
      ...queries().pieces.map((piece, row) => {
        const button = element("button", {
          type: "button",
          className: "piece",
          dir: "auto",
          textContent: visible(piece),
        });
        button.addEventListener("pointerenter", () => chooseRow(row));
        button.addEventListener("focus", () => chooseRow(row));
        button.addEventListener("click", () => chooseRow(row));
        return button;
      }),
    );
    keyPieces.replaceChildren(
      ...keys().pieces.map((piece) => {
        const text = element("span", { dir: "auto", textContent: visible(piece) });
        return element("span", { className: "piece" }, text, element("small", { dir: "ltr" }));
      }),
    );
  }

  queryPieces.addEventListener("keydown", (event) => {
    const forwards = queryPieces.dir === "rtl" ? "ArrowLeft" : "ArrowRight";
    const backwards = queryPieces.dir === "rtl" ? "ArrowRight" : "ArrowLeft";
    const last = queries().pieces.length - 1;
    const to = { [forwards]: state.row + 1, [backwards]: state.row - 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    queryPieces.children[Math.min(last, Math.max(0, to))].focus();
  });

  function showRow() {
    const { columns } = maps[state.kind];
    const of = weights.subarray(state.row * columns, (state.row + 1) * columns);
    [...queryPieces.children].forEach((button, row) => {
      button.setAttribute("aria-pressed", row === state.row);
      button.tabIndex = row === state.row ? 0 : -1;
    });
    const largest = of.reduce((most, each) => Math.max(most, each), 1e-9);
    [...keyPieces.children].forEach((piece, column) => {
      const share = Math.round(100 * Math.sqrt(of[column] / largest));
      piece.style.backgroundColor = `color-mix(in srgb, var(--mark) ${share}%, transparent)`;
      piece.lastChild.textContent = of[column] >= 0.02 || of[column] === largest ? percent(of[column]) : "";
      piece.classList.toggle("pointed", column === state.column);
    });
    const logProb = queries().log_probs?.[state.row];
    const sure = logProb === undefined || logProb === null ? "" : `, probability ${percent(Math.exp(logProb))}`;
    const pointed = state.column < 0 ? "" : ` At the pointer: ${told(state.column, of)}.`;
    readout.textContent = `${quoted(queries().pieces[state.row])}${sure}, takes from: ${list(of)}.${pointed}`;
  }

  /** A piece as part of a sentence, which it cannot reorder whatever its script. */
  const quoted = (piece) => `\u2068“${visible(piece)}”\u2069`;
  const told = (column, of) => `${quoted(keys().pieces[column])}\u00a0${percent(of[column])}`;

  /** The keys with the largest weights of a row, in words. */
  function list(of) {
    const order = Array.from(of.keys()).filter((column) => of[column] > 0);
    const strongest = order.sort((a, b) => of[b] - of[a]).slice(0, STRONGEST);
    return strongest.map((column) => told(column, of)).join(" · ");
  }

  let place; // where the cells of the matrix are: left, top, and the size of one
  const picture = element("canvas"); // the matrix without what is pointed at

  function drawMatrix(colours) {
    const { rows, columns } = maps[state.kind];
    const ratio = window.devicePixelRatio || 1;
    const room = Math.max(160, matrixBox.clientWidth - LABEL - 4);
    const size = Math.max(1, Math.min(24, Math.floor(room / columns), Math.max(8, Math.floor(900 / rows))));
    const pen = picture.getContext("2d");
    const font = `${Math.max(10, Math.min(13, size - 1))}px system-ui, sans-serif`;
    pen.font = font;
    const [rowLabels, left] = labels(pen, queries().pieces);
    const [columnLabels, top] = labels(pen, keys().pieces);
    place = { left, top, size };
    const [width, height] = [left + columns * size + 2, top + rows * size + 2];
    matrix.width = picture.width = width * ratio;
    matrix.height = picture.height = height * ratio;
    matrix.style.width = `${width}px`;
    matrix.style.height = `${height}px`;
    pen.scale(ratio, ratio);
    const cells = element("canvas", { width: columns, height: rows });
    cells.getContext("2d").putImageData(image(weights, columns, rows, largestOf(weights), colours), 0, 0);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(cells, left, top, columns * size, rows * size);
    const style = getComputedStyle(root);
    pen.strokeStyle = style.getPropertyValue("--line");
    pen.strokeRect(left - 0.5, top - 0.5, columns * size + 1, rows * size + 1);
    pen.font = font; // forgotten with the new width
    pen.textBaseline = "middle";
    pen.fillStyle = style.getPropertyValue("--text");
    const every = Math.ceil(11 / size);
    pen.textAlign = "right";
    for (let row = 0; row < rows; row += every) {
      pen.direction = direction(rowLabels[row]);
      pen.fillText(rowLabels[row], left - 6, top + (row + 0.5) * size);
    }
    pen.textAlign = "left";
    for (let column = 0; column < columns; column += every) {
      pen.save();
      pen.translate(left + (column + 0.5) * size, top - 6);
      pen.rotate(-Math.PI / 2);
      pen.direction = direction(columnLabels[column]);
      pen.fillText(columnLabels[column], 0, 0);
      pen.restore();
    }
    const name = `${NAMES[state.kind] ?? state.kind}, layer ${state.layer + 1}, ${headName(state.head)}`;
    matrix.setAttribute("aria-label", `${name}: ${rows} rows, ${columns} columns. A table follows.`);
    outline();
  }

  /** Draw the matrix with a line around the row that is chosen, and around the cell that is pointed at. */
  function outline() {
    const { left, top, size } = place;
    const pen = matrix.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, matrix.width, matrix.height);
    pen.drawImage(picture, 0, 0);
    pen.scale(window.devicePixelRatio || 1, window.devicePixelRatio || 1);
    pen.strokeStyle = getComputedStyle(root).getPropertyValue("--focus");
    pen.lineWidth = 2;
    pen.strokeRect(left, top + state.row * size, maps[state.kind].columns * size, size);
    if (state.column >= 0) pen.strokeRect(left + state.column * size, top + state.row * size, size, size);
  }

  /** The labels of pieces, and the pixels that they need. */
  function labels(pen, pieces) {
    const fitting = pieces.map((piece) => short(pen, piece));
    return [fitting, 10 + Math.ceil(Math.max(...fitting.map((label) => pen.measureText(label).width)))];
  }

  /** A label that fits, cut behind a whole character. */
  function short(pen, piece) {
    const letters = [...visible(piece)];
    let length = letters.length;
    while (length > 1 && pen.measureText(letters.slice(0, length).join("") + "…").width > LABEL - 10) length--;
    return length < letters.length ? letters.slice(0, length).join("") + "…" : letters.join("");
  }

  matrix.addEventListener("pointermove", (event) => {
    const { rows, columns } = maps[state.kind];
    const row = Math.floor((event.offsetY - place.top) / place.size);
    const column = Math.floor((event.offsetX - place.left) / place.size);
    if (row < 0 || row >= rows || column >= columns) return;
    if (row !== state.row || column !== state.column) chooseRow(row, Math.max(-1, column));
  });
  matrix.addEventListener("pointerleave", () => chooseRow(state.row));

  function fillTable() {
    if (!details.open) return;
    const { rows, columns } = maps[state.kind];
    const whole = rows * columns <= WHOLE_TABLE;
    const table = element("table", {}, element("caption", { textContent: `${title.textContent}. ${described()}` }));
    const names = whole ? keys().pieces.map(visible) : [`the ${STRONGEST} strongest`];
    const cells = names.map((name) => element("th", { scope: "col", textContent: name }));
    table.append(element("thead", {}, element("tr", {}, element("td"), ...cells)));
    const body = element("tbody");
    queries().pieces.forEach((piece, row) => {
      const of = weights.subarray(row * columns, (row + 1) * columns);
      const shown = whole ? Array.from(of, (weight) => weight.toFixed(2)) : [list(of)];
      const heading = element("th", { scope: "row", textContent: visible(piece) });
      body.append(element("tr", {}, heading, ...shown.map((text) => element("td", { textContent: text }))));
    });
    table.append(body);
    tableBox.replaceChildren(table);
  }

  // ---- Choices ----

  function chooseKind(kind) {
    const { layers } = maps[kind];
    Object.assign(state, { kind, layer: layers - 1, head: averageOf(maps[kind]), row: 0, column: -1 });
    build();
  }

  function chooseMap(layer, head) {
    Object.assign(state, { layer, head });
    showMap();
  }

  function chooseRow(row, column = -1) {
    Object.assign(state, { row, column });
    showRow();
    outline();
  }

  function showMap() {
    chosenInput().checked = true;
    weights = maps[state.kind].map(state.layer, state.head);
    title.textContent = `${NAMES[state.kind] ?? state.kind}, layer ${state.layer + 1}, ${headName(state.head)}`;
    showRow();
    drawMatrix(palette());
    fillTable();
  }

  function drawAll() {
    const colours = palette();
    drawLegend(colours);
    drawMaps(colours);
    drawMatrix(colours);
  }

  function build() {
    description.textContent = described();
    buildMaps();
    buildPieces();
    showMap();
    drawAll();
  }

  build();
  new ResizeObserver(() => drawMatrix(palette())).observe(matrixBox);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
}

const embedded = document.getElementById("document");
if (embedded) showAttention(document.getElementById("attention"), JSON.parse(embedded.textContent));
