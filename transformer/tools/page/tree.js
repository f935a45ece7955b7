"use strict";

/** More of what attention.js begins. */
Object.assign(page, {
  svg(name, attributes = {}, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  },

  bar(share) {
    const inner = page.element("div");
    inner.style.width = `${100 * share}%`;
    return page.element("div", { className: "bar", "aria-hidden": "true" }, inner);
  },

  /** A table with a caption; `rows` are lists of texts, the first of which names the row. */
  table(caption, heads, rows) {
    const cells = (kind, texts) => texts.map((text) => page.element(kind, { textContent: text }));
    const head = page.element("tr", {}, ...heads.map((text) => page.element("th", { scope: "col", textContent: text })));
    const body = rows.map(([first, ...others]) =>
      page.element("tr", {}, page.element("th", { scope: "row", dir: "auto", textContent: first }), ...cells("td", others)),
    );
    const title = page.element("caption", { textContent: caption });
    return page.element("table", {}, title, page.element("thead", {}, head), page.element("tbody", {}, ...body));
  },

  /** A box that scrolls, also by keyboard. */
  scroll(name, ...children) {
    const properties = { className: "scroll", tabIndex: 0, role: "region", "aria-label": name };
    return page.element("div", properties, ...children);
  },
});

/** What became of a hypothesis of a search, in words. */
function fateOf(node, step) {
  if (node.state === "complete") return `complete, score ${node.score.toFixed(3)}`;
  if (node.out === undefined) return "live";
  return node.out === step ? `considered at step ${step + 1}, not kept` : `fell out at step ${node.out + 1}`;
}

/**
 * The tree of a recorded search as an element: hypotheses from left to right, each with its log-probability.
 *
 * `choose(path, fate)` is called with the nodes from the first piece to the one that is chosen, and what became of it.
 * `chosen`: an element for what it shows.
 */
function searchTree(search, choose, chosen) {
  const { element, svg } = page;
  const all = element("input", { type: "checkbox" });
  const box = page.scroll("Tree of the search");
  const table = page.scroll("Table of the search");
  const details = element("details", {}, element("summary", { textContent: "The same as a table" }), table);
  const nodes = search.nodes.map((node) => ({ ...node, children: [], step: 0 }));
  const best = new Set(search.outputs[0]?.pieces.map((piece) => piece.node));
  nodes.forEach((node) => {
    if (node.parent >= 0) node.step = nodes[node.parent].step + 1;
    if (node.parent >= 0) nodes[node.parent].children.push(node);
  });
  nodes.forEach((node, i) => (node.index = i));

  const shown = (node) => all.checked || node.state !== "considered";
  const pathOf = (node) => (node.parent < 0 ? [node.index] : [...pathOf(nodes[node.parent]), node.index]);

  /** Place the nodes: a column for each step; a row for each chain of first continuations, as high as there is room. */
  function place() {
    const free = []; // the first free row of each column
    let rows = 0;
    function put(first, least) {
      const chain = [];
      for (let node = first; node; node = node.below[0]) chain.push(node);
      const row = Math.max(least, ...chain.map((node) => free[node.step] ?? 0));
      rows = Math.max(rows, row + 1);
      for (const node of chain) {
        node.row = row;
        free[node.step] = row + 1;
      }
      for (const node of chain.toReversed()) for (const child of node.below.slice(1)) put(child, row + 1);
    }
    const placed = nodes.filter(shown);
    for (const node of placed) node.below = node.children.filter(shown);
    for (const root of placed.filter((node) => node.parent < 0)) put(root, 0);
    return [placed, rows];
  }

  function draw() {
    const [placed, rows] = place();
    const ruler = element("canvas").getContext("2d");
    const widths = [];
    for (const node of placed) {
      node.label = page.visible(node.piece);
      const score = node.state === "complete" ? `= ${node.score.toFixed(2)}` : node.total.toFixed(2);
      node.number = score + (node.out === undefined ? "" : " ✕");
      ruler.font = "11px system-ui, sans-serif";
      const number = ruler.measureText(node.number).width;
      ruler.font = "13px system-ui, sans-serif";
      node.width = Math.max(46, Math.max(number, ruler.measureText(node.label).width) + 14);
      widths[node.step] = Math.max(widths[node.step] ?? 0, node.width);
    }
    const lefts = [10];
    widths.forEach((width, step) => (lefts[step + 1] = lefts[step] + width + 22));
    const edges = [];
    const items = placed.map((node) => {
      const [x, y] = [lefts[node.step], 8 + node.row * 46];
      if (node.parent >= 0) {
        const parent = nodes[node.parent];
        const [from, above] = [lefts[parent.step] + parent.width, 8 + parent.row * 46 + 18];
        const line = { d: `M${from} ${above} C${x - 10} ${above} ${x - 16} ${y + 18} ${x} ${y + 18}` };
        const onBest = best.has(node.index) ? " best" : "";
        edges.push(svg("path", { ...line, class: `edge${onBest}` }));
      }
      const about = `log-probability ${node.total.toFixed(3)}, ${fateOf(node, node.step)}`;
      const kind = node.state === "complete" ? "complete" : node.out === undefined ? "live" : "out";
      const item = svg(
        "g",
        {
          ...{ role: "treeitem", tabindex: -1, "aria-description": about, "aria-level": node.step + 1, "aria-selected": false },
          class: kind,
        },
        svg("rect", { x, y, width: node.width, height: 36, rx: 4 }),
        svg("text", { x: x + node.width / 2, y: y + 15, "text-anchor": "middle" }, node.label),
        svg("text", { x: x + node.width / 2, y: y + 30, "text-anchor": "middle", class: "small" }, node.number),
      );
      node.item = item;
      item.addEventListener("click", () => select(node));
      item.addEventListener("keydown", (event) => walk(event, node));
      return item;
    });
    const size = { width: lefts.at(-1) + 10, height: rows * 46 + 10 };
    const picture = svg("svg", { ...size, role: "tree", "aria-label": "Hypotheses of the search" }, ...edges, ...items);
    box.replaceChildren(picture);
    placed[0]?.item.setAttribute("tabindex", 0);
    fillTable(placed);
  }

  function select(node) {
    for (const item of box.querySelectorAll("[role=treeitem]")) {
      item.setAttribute("tabindex", item === node.item ? 0 : -1);
      item.setAttribute("aria-selected", item === node.item);
    }
    node.item.focus();
    choose(pathOf(node), fateOf(node, node.step));
  }

  function walk(event, node) {
    const [placed] = [nodes.filter(shown)];
    const column = placed.filter((other) => other.step === node.step).sort((a, b) => a.row - b.row);
    const at = column.indexOf(node);
    const to = {
      ArrowRight: node.below[0],
      ArrowLeft: nodes[node.parent],
      ArrowDown: column[at + 1],
      ArrowUp: column[at - 1],
      Home: placed[0],
      End: nodes[search.outputs[0]?.pieces.at(-1)?.node],
      Enter: node,
      " ": node,
    }[event.key];
    if (!["ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "Home", "End", "Enter", " "].includes(event.key)) return;
    event.preventDefault();
    if (to) select(to);
  }

  function fillTable(placed) {
    if (!details.open) return;
    const rows = placed.map((node) => {
      const text = pathOf(node)
        .map((i) => page.visible(nodes[i].piece))
        .join(" ");
      return [text, `${node.step + 1}`, node.log_prob.toFixed(3), node.total.toFixed(3), fateOf(node, node.step)];
    });
    const heads = ["pieces", "step", "log-probability of the last", "of all", "what became of it"];
    table.replaceChildren(page.table("Hypotheses of the search", heads, rows));
    table.firstChild.className = "hypotheses";
  }

  all.addEventListener("change", draw);
  details.addEventListener("toggle", () => fillTable(nodes.filter(shown)));
  draw();
  const label = element("label", { className: "check" }, all, "Also those that were only considered");
  return element("div", {}, label, box, chosen, details);
}

/** A constituency tree, [label, child, ...] or [tag, word], as a picture. */
function constituents(root) {
  const { svg } = page;
  const ruler = page.element("canvas").getContext("2d");
  ruler.font = "13px system-ui, sans-serif";
  const width = (text) => ruler.measureText(text).width + 16;
  const parts = [];
  let right = 8;

  function placed(node) {
    const [label, ...below] = node;
    if (typeof below[0] === "string") {
      const wide = Math.max(width(label), width(below[0]));
      const x = right + wide / 2;
      right += wide;
      return { label, word: below[0], x, height: 1, below: [] };
    }
    const children = below.map(placed);
    const x = (children[0].x + children.at(-1).x) / 2;
    return { label, x, height: 1 + Math.max(...children.map((child) => child.height)), below: children };
  }

  function draw(node, bottom) {
    const y = bottom - node.height * 40;
    for (const child of node.below) {
      const to = bottom - child.height * 40 - 14;
      // At right angles, so that no line runs through a label.
      parts.push(svg("path", { class: "edge", d: `M${node.x} ${y + 5} V${y + 12} H${child.x} V${to}` }));
      draw(child, bottom);
    }
    parts.push(svg("text", { x: node.x, y, "text-anchor": "middle", class: node.word === undefined ? "label" : "small" }, node.label));
    if (node.word !== undefined)
      parts.push(svg("text", { x: node.x, y: y + 20, "text-anchor": "middle" }, page.visible(node.word)));
  }

  const top = placed(root);
  const height = top.height * 40 + 40;
  draw(top, height - 20);
  const size = { width: right + 8, height };
  return svg("svg", { ...size, role: "img", "aria-label": "Tree of the sentence; brackets follow" }, ...parts);
}
