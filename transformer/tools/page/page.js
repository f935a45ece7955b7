/** The page: what a model does with a text. It asks the API of its own server, and nothing else. */
async function showPage() {
  const { element, percent, visible } = page;
  const form = document.getElementById("form");
  const status = document.getElementById("status");
  const results = document.getElementById("results");
  let asking; // ends the last question
  const model = await ask("model", {});
  const fields = model.endpoints;
  const verb = ["translate", "generate", "predict"].find((name) => name in fields) ?? "attention";
  const texts = { translate: "source", generate: "prompt" };
  const main = texts[verb] ?? "text"; // the field of the text
  const TITLES = { translate: "Translate", generate: "Generate", predict: "Predict", attention: "Show attention" };
  const NAMES = {
    ...{ source: "Text to be translated", prompt: "Prompt", text: "Text", second: "Second text" },
    ...{ prefix: "Beginning of the translation (optional)", beam_size: "Beam size", n_best: "Number of outputs" },
    ...{ length_penalty: "Length penalty", max_extra_length: "New pieces at most", sample: "Sample at random" },
    ...{ temperature: "Temperature", top_k: "Only from the k likeliest", top_p: "Only from this probability", seed: "Seed" },
  };
  const OPTIONS = Object.keys(model.decode ?? {});
  const inputs = {};
  let asked = 0; // the number of the last question
  let last = null; // what is shown: endpoint, request, answer, and what was asked about it

  // ---- Asking ----

  async function ask(endpoint, request) {
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(request) };
    let response, answer;
    try {
      response = await fetch(`api/1/${endpoint}`, { ...options, signal: asking?.signal });
      answer = await response.json();
    } catch {
      throw new Error("the server does not answer; start it again");
    }
    if (!response.ok) throw Object.assign(new Error(answer.error), { field: answer.field });
    return answer;
  }

  function tell(text, wrong = false) {
    status.textContent = text;
    status.classList.toggle("wrong", wrong);
  }

  /** Run something that asks; show its error. Of several at once, only the last is asked and shown. */
  async function run(doing, work) {
    const number = ++asked;
    asking?.abort();
    asking = new AbortController();
    tell(`${doing} …`);
    for (const input of Object.values(inputs)) input.removeAttribute("aria-invalid");
    const began = performance.now();
    try {
      const show = await work();
      if (number !== asked) return;
      show();
      tell(`Done in ${Math.round(performance.now() - began)} ms.`);
    } catch (error) {
      if (number !== asked) return;
      tell(error.message, true);
      correct(inputs[error.field]);
    }
  }

  /** Go to an input that has to be corrected. */
  function correct(input) {
    if (!input) return;
    input.closest("details")?.setAttribute("open", "");
    input.setAttribute("aria-invalid", "true");
    input.setAttribute("aria-describedby", status.id);
    input.focus();
  }

  // ---- The form ----

  function buildForm() {
    const text = (name) => {
      const input = name === "prefix" ? element("input", { type: "text" }) : element("textarea", { rows: 3 });
      Object.assign(input, { id: name, dir: "auto", spellcheck: false, autocomplete: "off" });
      inputs[name] = input;
      return element("label", {}, NAMES[name], input);
    };
    const option = (name) => {
      const value = model.decode[name];
      const flag = typeof value === "boolean";
      const input = element("input", flag ? { type: "checkbox", checked: value } : { type: "number", value, step: "any" });
      input.id = name;
      inputs[name] = input;
      const label = element("label", { className: flag ? "check" : "" });
      label.append(...(flag ? [input, NAMES[name]] : [NAMES[name], input]));
      return label;
    };
    const names = verb === "attention" ? ["text"] : Object.keys(fields[verb]).length && fields[verb];
    form.append(...["source", "prompt", "text", "second", "prefix"].filter((name) => names.includes(name)).map(text));
    if (OPTIONS.length) {
      const grid = element("div", { className: "options" }, ...OPTIONS.map(option));
      form.append(element("details", {}, element("summary", { textContent: "Options" }), grid));
    }
    const button = (title, properties) => element("button", { className: "do", textContent: title, ...properties });
    form.append(
      button(TITLES[verb], { type: "submit", className: "do first" }),
      button("Copy a link", { type: "button", id: "link", onclick: copyLink }),
      button("Save as JSON", { type: "button", id: "save", onclick: save, disabled: true }),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      start();
    });
    inputs[main].addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    form.hidden = false;
  }

  /** The request that the form describes. Options that were not changed are left out. */
  function described() {
    const request = {};
    for (const [name, input] of Object.entries(inputs)) {
      if (OPTIONS.includes(name)) {
        const value = input.type === "checkbox" ? input.checked : Number(input.value);
        if (value !== model.decode[name] && input.value !== "") request[name] = value;
      } else if (input.value !== "" || name === main) request[name] = input.value;
    }
    return request;
  }

  function start() {
    const request = described();
    const address = new URLSearchParams(Object.entries(request)).toString();
    history.replaceState(null, "", `#${address}`);
    if (verb === "attention") return attend({ text: request.text });
    const full = "search" in fields || fields[verb].includes("search") ? { ...request, search: true } : request;
    return run(TITLES[verb], async () => {
      const answer = await ask(verb, full);
      const scored = verb === "generate" && request.prompt ? await ask("score", { text: request.prompt }) : null;
      return () => {
        last = { endpoint: verb, request, answer, ...(scored ? { prompt: scored } : {}) };
        document.getElementById("save").disabled = false;
        SHOWS[verb](answer, scored);
      };
    });
  }

  async function copyLink() {
    const request = new URLSearchParams(Object.entries(described())).toString();
    history.replaceState(null, "", `#${request}`);
    try {
      await navigator.clipboard.writeText(location.href);
      tell("The link is in the clipboard.");
    } catch {
      tell("The link is in the address bar.");
    }
  }

  function save() {
    const file = new Blob([JSON.stringify({ model, ...last }, null, 1)], { type: "application/json" });
    const link = element("a", { href: URL.createObjectURL(file), download: `${verb}.json` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  function fromLink() {
    const given = new URLSearchParams(location.hash.slice(1));
    if (!given.has(main)) return;
    for (const [name, input] of Object.entries(inputs)) {
      if (input.type === "checkbox") input.checked = given.has(name) ? given.get(name) === "true" : model.decode[name];
      else input.value = given.get(name) ?? model.decode?.[name] ?? "";
    }
    start();
  }

  // ---- Results ----

  function section(title, ...children) {
    return element("section", {}, element("h2", { textContent: title }), ...children);
  }

  const kindOf = (probability) => (probability >= 0.5 ? "likely" : probability >= 0.1 ? "doubtful" : "unlikely");

  function key(isForced) {
    const spans = [
      ["likely", "at least 50 %"],
      ["doubtful", "10 to 50 %"],
      ["unlikely", "less than 10 %"],
    ].map(([className, textContent]) => element("span", { className, textContent }));
    const given = isForced ? [element("em", { textContent: "slanted: given" })] : [];
    return element("div", { className: "key" }, "Probability of a piece: ", ...spans, ...given);
  }

  /** The pieces of an output as buttons; each shows its alternatives. `before`: pieces that are not chosen. `given`: the
   * beginning that was forced. */
  function piecesOf(output, before, given, goOn) {
    const text = output.pieces.map((piece) => piece.text ?? "").join("");
    const panel = element("div", { "aria-live": "polite" });
    const forced = given.trimStart().length;
    let length = 0;
    const spans = before.map(({ piece, probability }) =>
      element("span", {
        className: `piece ${probability === null ? "" : kindOf(probability)}`,
        textContent: visible(piece),
        title: probability === null ? "the first piece" : percent(probability),
      }),
    );
    const buttons = output.pieces.map((piece, i) => {
      const start = length;
      length += (piece.text ?? "").length;
      const isForced = start === 0 ? forced > 0 : start - 1 < forced && forced > 0;
      const button = element("button", {
        type: "button",
        className: `piece ${kindOf(piece.probability)}${isForced ? " forced" : ""}`,
        dir: "auto",
        textContent: visible(piece.piece),
        title: percent(piece.probability),
        "aria-label": `${visible(piece.piece)}, ${percent(piece.probability)}${isForced ? ", given" : ""}`,
        "aria-pressed": "false",
      });
      button.addEventListener("click", () => show(i));
      return button;
    });
    function show(i) {
      buttons.forEach((button, j) => button.setAttribute("aria-pressed", i === j));
      const head = output.pieces.slice(0, i);
      const prefix = head.map((piece) => piece.text ?? "").join("");
      const known = head.every((piece) => piece.text !== null);
      const rows = output.pieces[i].alternatives.flatMap((one) => {
        const choice = element("button", {
          type: "button",
          className: "piece",
          dir: "auto",
          textContent: visible(one.piece),
          disabled: !known || one.text === null,
          title: one.text === null ? "no text can stand for it" : "go on from this piece",
        });
        choice.addEventListener("click", () => goOn(prefix + one.text));
        const number = element("span", { className: "number", textContent: percent(one.probability) });
        return [choice, number, page.bar(one.probability)];
      });
      const title = element("h3", { textContent: `In the place of “${visible(output.pieces[i].piece)}”` });
      panel.replaceChildren(title, element("div", { className: "alternatives" }, ...rows));
    }
    const box = element("div", { className: "pieces text", role: "group", "aria-label": "Pieces", dir: page.direction(text) });
    box.append(...spans, ...buttons);
    return element("div", {}, box, key(forced > 0), element("p", { textContent: "Choose a piece to see its alternatives." }), panel);
  }

  /** The outputs of a search: the pieces of one of them, and its tree. */
  function written(answer, before, goOn, attended) {
    const { search } = answer;
    const list = answer.n_best ?? [answer];
    const shown = element("div");
    const beside = element("div");
    const choose = (i) => {
      const said = list[i].translation ?? list[i].text;
      const text = element("p", { dir: page.direction(said), textContent: said, className: "said" });
      shown.replaceChildren(text, piecesOf(search.outputs[i], before, answer.prefix ?? "", goOn));
      beside.replaceChildren();
      delete last.attention; // of another output
      attentionOf(beside, attended(said));
    };
    if (!search.outputs.length) {
      results.replaceChildren(section("Output", element("p", { textContent: "There is no output." })));
      return;
    }
    const picker = element("fieldset", { className: "outputs", hidden: list.length < 2 });
    picker.append(element("legend", { textContent: "Outputs, best first" }));
    list.forEach((one, i) => {
      const input = element("input", { type: "radio", name: "output", checked: i === 0 });
      input.addEventListener("change", () => choose(i));
      const text = element("span", { dir: "auto", textContent: one.translation ?? one.text });
      const score = element("span", { className: "number", textContent: (one.score ?? one.log_prob)?.toFixed(3) ?? "" });
      picker.append(element("label", {}, input, score, text));
    });
    const chosen = element("div", { "aria-live": "polite" });
    const choosePath = (path, fate) => {
      const pieces = path.map((i) => search.nodes[i]);
      const told = pieces.map((node) => visible(node.piece)).join(" ");
      const total = pieces.at(-1).total.toFixed(3);
      chosen.replaceChildren(element("p", { dir: "auto", textContent: `${told}: log-probability ${total}, ${fate}.` }));
      const text = textOf(pieces);
      if (text === null || pieces.at(-1).state === "complete") return;
      const button = element("button", { type: "button", className: "do", textContent: "Go on from here" });
      button.addEventListener("click", () => goOn(text));
      chosen.append(button);
    };
    const told =
      "From left to right, a column for each step. Below each piece stands the log-probability so far, or the score of a " +
      "complete output; ✕ and a broken line: it fell out. Use the arrow keys to walk.";
    results.replaceChildren(
      section(verb === "translate" ? "Translation" : "Text", picker, shown),
      section("Search", element("p", { textContent: told }), searchTree(search, choosePath, chosen)),
      beside,
    );
    choose(0);
  }

  /** The text that pieces spell; null if the last one leaves a character incomplete, or has no text. */
  function textOf(nodes) {
    return nodes.at(-1).text === null ? null : nodes.map((node) => node.text ?? "").join("");
  }

  /** A button that shows attention below it. */
  function attentionOf(parent, request) {
    const root = element("div", { className: "attention" });
    const button = element("button", { type: "button", className: "do", textContent: "Show attention" });
    button.addEventListener("click", () => attend(request, root));
    parent.append(element("section", {}, button, root));
  }

  function attend(request, root = null) {
    return run("Attention", async () => {
      const answer = await ask("attention", { ...request, packed: true });
      return () => {
        if (root === null) {
          root = element("div", { className: "attention" });
          results.replaceChildren(root);
          last = { endpoint: "attention", request, answer };
          document.getElementById("save").disabled = false;
        } else last.attention = answer;
        return showAttention(root, answer);
      };
    });
  }

  /** Start again with another beginning; then the focus is where the search went on. */
  async function goOnFrom(input, text) {
    input.value = text;
    await start();
    if (document.activeElement !== document.body) return;
    const buttons = [...results.querySelectorAll(".text button.piece")];
    (buttons.findLast((button) => button.classList.contains("forced")) ?? buttons[0])?.focus();
  }

  const SHOWS = {
    translate(answer) {
      const goOn = (prefix) => goOnFrom(inputs.prefix, prefix.trimStart());
      written(answer, [], goOn, (target) => ({ source: answer.source, ...(target.trim() ? { target } : {}) }));
    },

    generate(answer, scored) {
      const goOn = (text) => goOnFrom(inputs.prompt, answer.prompt + text);
      const log_probs = scored?.log_probs ?? [];
      const before = (scored?.pieces ?? []).map((piece, i) => ({
        piece,
        probability: log_probs[i] === null ? null : Math.exp(log_probs[i]),
      }));
      written(answer, before, goOn, (text) => ({ text: answer.prompt + text }));
    },

    predict(answer) {
      const parts = [];
      if ("root" in answer) {
        const picture = page.scroll("Picture of the tree", constituents(answer.root));
        parts.push(section("Tree", picture, element("pre", { textContent: answer.tree })));
      } else if ("masks" in answer) {
        answer.masks.forEach((mask, i) => {
          const rows = mask.map((one) => [visible(one.piece), percent(one.probability)]);
          parts.push(section(`Mask ${i + 1}`, page.table("Likeliest pieces", ["piece", "probability"], rows)));
        });
        if (!answer.masks.length) parts.push(section("Masks", element("p", { textContent: "The text has no [MASK]." })));
      } else if ("words" in answer) {
        const words = answer.words.map((word, i) => {
          const sure = answer.probability[i] === null ? "" : ` ${percent(answer.probability[i])}`;
          const tag = element("small", { textContent: answer.label[i] + sure });
          return element("li", {}, element("span", { dir: "auto", textContent: word }), tag);
        });
        parts.push(section("Tags", element("ul", { className: "words", dir: page.direction(answer.words.join(" ")) }, ...words)));
      } else if ("probabilities" in answer) {
        const rows = Object.entries(answer.probabilities).sort((a, b) => b[1] - a[1]);
        const cells = rows.flatMap(([label, share]) => [
          element("span", { dir: "auto", textContent: label }),
          element("span", { className: "number", textContent: percent(share) }),
          page.bar(share),
        ]);
        const said = element("p", { className: "said", textContent: `${answer.label} (${percent(answer.probability)})` });
        parts.push(section("Label", said, element("div", { className: "alternatives" }, ...cells)));
      } else {
        parts.push(section("Number", element("p", { className: "said", textContent: answer.label.toPrecision(6) })));
      }
      const beside = element("div");
      results.replaceChildren(...parts, beside);
      const given = Object.fromEntries(["text", "second"].filter((name) => name in last.request).map((name) => [name, last.request[name]]));
      attentionOf(beside, given);
    },
  };

  const size = model.parameters.toLocaleString("en");
  document.getElementById("model").textContent =
    `${model.name}: ${model.task.replace("_", " ")}, checkpoint ${model.checkpoint}, ${size} parameters`;
  document.title = `${model.name} – Transformer`;
  buildForm();
  fromLink();
  window.addEventListener("hashchange", fromLink);
}

if (document.getElementById("page"))
  showPage().catch((error) => {
    const status = document.getElementById("status");
    status.textContent = error.message;
    status.classList.add("wrong");
  });
