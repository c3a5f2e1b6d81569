"use strict";

// Texts and ids reach the page through textContent and attributes alone, never as markup.

const $ = (id) => document.getElementById(id);
const FIRST_QUERIES = 500; // rows of the list; a button shows the others
const SVG = "http://www.w3.org/2000/svg";

let data; // see _page_data in __init__.py
let shown = []; // the queries that the search finds, sorted
let bars = []; // the same queries, by gain
let opened = null; // the query that is open
let words = []; // of the search
let lowered = null; // the ids and texts of passages in lower case, made by the first search
const choice = { metric: 0, run: 0, base: 0, sort: "gain", column: 0 };

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function draw(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

async function unpack(text) {
  const characters = atob(text.trim());
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

// ---- numbers

const signed = (value, digits = 3) =>
  `${Number(value.toFixed(digits)) === 0 ? "" : value > 0 ? "+" : "−"}${Math.abs(value).toFixed(digits)}`;
const side = (value) => (value > 0.0005 ? "better" : value < -0.0005 ? "worse" : "");
const plural = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
const queries = (number) => (number === 1 ? "1 query" : `${number.toLocaleString("en")} queries`);
const values = (query) => (query.values ? query.values[choice.metric] : null);
const gain = (query) =>
  query.values ? values(query)[choice.run] - values(query)[choice.base] : null;

// Not Math.max(...numbers), whose number of arguments is limited.
const largest = (numbers) => numbers.reduce((most, number) => Math.max(most, number), 0);

function level(grade) {
  const best = data.bestGrade;
  if (grade === undefined) return "none";
  if (grade <= 0) return "g0";
  return `g${best > 1 ? 1 + Math.round((3 * (grade - 1)) / (best - 1)) : 4}`;
}

function decimals(scores) {
  if (scores.every(Number.isInteger)) return 0;
  const most = largest(scores.map(Math.abs));
  return most < 1 ? 4 : most < 100 ? 3 : 1;
}

// ---- search

/** The text with the words of the search marked. */
function marked(text) {
  if (!words.length) return [text];
  const pattern = words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|");
  return text
    .split(new RegExp(`(${pattern})`, "giu"))
    .map((part, i) => (i % 2 ? make("mark", {}, part) : part));
}

function matches(query) {
  const own = `${query.id} ${query.text ?? ""}`.toLowerCase();
  const lacking = words.filter((word) => !own.includes(word));
  if (!lacking.length) return true;
  return query.docs.some((doc) => lacking.every((word) => lowered[doc].includes(word)));
}

function search() {
  words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length) lowered ??= data.docs.map((id, i) => `${id} ${data.texts[i] ?? ""}`.toLowerCase());
  list();
}

// ---- all queries

const SORTS = {
  gain: ["largest gain", (a, b) => gain(b) - gain(a)],
  loss: ["largest loss", (a, b) => gain(a) - gain(b)],
  change: ["largest change", (a, b) => Math.abs(gain(b)) - Math.abs(gain(a))],
  best: ["best value", (a, b) => values(b)[choice.run] - values(a)[choice.run]],
  worst: ["worst value", (a, b) => values(a)[choice.run] - values(b)[choice.run]],
  id: ["query id", null],
};
const collator = new Intl.Collator("en", { numeric: true });
const byId = (a, b) => collator.compare(a.id, b.id);

function list() {
  const found = words.length ? data.queries.filter(matches) : [...data.queries];
  const compare = SORTS[choice.sort][1];
  const sorter = (order) => (a, b) =>
    (a.values ? 0 : 1) - (b.values ? 0 : 1) || (a.values && order ? order(a, b) : 0) || byId(a, b);
  shown = compare ? found.sort(sorter(compare)) : found.sort(byId);
  bars = shown.filter((query) => query.values).sort(SORTS.gain[1]);
  $("found").textContent = words.length ? `${queries(shown.length)} found` : "";
  showGains();
  showQueries(FIRST_QUERIES);
}

function showGains() {
  const { metric, run, base } = choice;
  const [better, worse] = ["better", "worse"].map(
    (name) => bars.filter((query) => side(gain(query)) === name).length,
  );
  const mean = data.means[metric][run] - data.means[metric][base];
  const p = data.p[metric][base][run];
  const printed = p >= 0.0005 ? `= ${p.toFixed(3)}` : p >= 1e-15 ? `= ${p.toExponential(0)}` : "< 1e-15";
  const tested = p === null ? "" : `, p ${printed}`;
  $("gains-title").textContent =
    `${data.runs[run]} over ${data.runs[base]}: ${signed(mean)} ${data.metrics[metric]} ` +
    `over ${queries(data.judged)}${tested}`;
  const counts = `${better} better, ${worse} worse, ${bars.length - better - worse} equal`;
  const gains = bars.map(gain);
  const top = largest(gains) || 0.001;
  const range = top + largest(gains.map((value) => -value));
  const zero = (200 * top) / range;
  $("axis").replaceChildren(
    ...[[0, top], [zero, 0], [200, top - range]].flatMap(([y, value], i) => {
      if (i !== 1 && Math.abs(y - zero) < 24) return []; // too near to zero's
      const label = make("span", {}, value ? signed(value, 2) : "0");
      label.style.top = `${y / 2}%`;
      return [label];
    }),
  );
  const chart = $("chart");
  const width = Math.max(1, bars.length);
  chart.setAttribute("viewBox", `0 0 ${width} 200`);
  chart.style.maxWidth = `${width * 26}px`;
  chart.setAttribute("aria-label", `Gain of each query, sorted: ${counts}`);
  const room = width > 200 ? 1 : 0.8;
  const paths = { gain: "", loss: "" };
  bars.forEach((_, i) => {
    const height = (-200 * gains[i]) / range;
    if (height) paths[height < 0 ? "gain" : "loss"] += `M${i},${zero}v${height}h${room}V${zero}z`;
  });
  chart.replaceChildren(
    draw("path", { class: "gain", d: paths.gain }),
    draw("path", { class: "loss", d: paths.loss }),
    draw("line", { class: "zero", x1: 0, x2: width, y1: zero, y2: zero }),
  );
  $("counts").textContent = `${counts}; each bar is a query`;
  $("pointed").textContent = "";
}

function pointAt(event) {
  const box = $("chart").getBoundingClientRect();
  return bars[Math.floor(((event.clientX - box.left) / box.width) * bars.length)];
}

function pointed(event) {
  const query = pointAt(event);
  $("chart").querySelector(".pointed")?.remove();
  if (!query) return;
  const i = bars.indexOf(query);
  $("chart").append(draw("rect", { class: "pointed", x: i, y: 0, width: 0.8, height: 200 }));
  $("pointed").textContent = `${signed(gain(query))}  ${query.text ?? ""} (${query.id})`;
}

function trend(value, most) {
  const svg = draw("svg", { class: "trend", viewBox: "-100 0 200 10", preserveAspectRatio: "none", "aria-hidden": "true" });
  const length = (100 * Math.abs(value)) / most;
  svg.append(
    draw("line", { x1: 0, x2: 0, y1: 0, y2: 10 }),
    draw("rect", { class: value > 0 ? "gain" : "loss", x: value > 0 ? 0 : -length, y: 1, width: length, height: 8 }),
  );
  return svg;
}

function showQueries(number) {
  const { run, base } = choice;
  const most = largest(bars.map((query) => Math.abs(gain(query)))) || 1;
  const labels = [data.runs[base], data.runs[run]];
  const head = make(
    "li",
    { class: "head", "aria-hidden": "true" },
    make("span", {}, "query"),
    ...labels.map((label) => make("span", { class: "number", title: label }, label)),
    make("span", { class: "number" }, "gain"),
    make("span"),
  );
  const rows = shown.slice(0, number).map((query) => {
    const about = make("span", { class: "about", dir: "auto" }, ...marked(query.text ?? query.id));
    if (query.text !== null) about.append(make("span", { class: "id" }, ...marked(query.id)));
    const link = make("a", { href: address(query) }, about);
    if (query.values) {
      const change = gain(query);
      link.append(
        ...[base, run].map((r, i) =>
          make("span", { class: "number", "data-label": labels[i] }, values(query)[r].toFixed(3))),
        make("span", { class: `number ${side(change)}` }, signed(change)),
        trend(change, most),
      );
    } else link.append(make("span", { class: "number muted" }, "not judged"));
    return make("li", {}, link);
  });
  $("queries").replaceChildren(head, ...rows);
  $("more").hidden = shown.length <= number;
  $("more").textContent = `Show all ${queries(shown.length)}`;
}

// ---- one query

const address = (query) => `#${encodeURIComponent(query.id)}`;

function showQuery(query) {
  const heading = $("query-text");
  heading.replaceChildren(...marked(query.text ?? query.id));
  const judged = Object.entries(query.judged).sort(([a], [b]) => b - a);
  const facts = query.text === null ? ["query text not found"] : [`query ${query.id}`];
  facts.push(
    judged.length
      ? `judged passages: ${judged.map(([grade, number]) => `${number} of grade ${grade}`).join(", ")}`
      : "without judgements",
  );
  $("query-facts").textContent = facts.join(" · ");
  showLegend(query);
  const { base } = choice;
  const ranks = query.lists[base] && new Map(query.lists[base][0].map((doc, i) => [doc, i + 1]));
  const columns = query.lists.map((listed, run) => ({
    name: data.runs[run],
    about: aboutRun(query, run),
    docs: listed ? listed[0] : [],
    scores: listed ? listed[1] : [],
    ranks: run === base ? null : ranks,
    empty: "no results for this query",
  }));
  choice.column = Math.min(choice.column, columns.length - 1);
  $("tabs").replaceChildren(
    ...data.runs.map((name, run) => {
      const tab = make("button", { type: "button", "aria-pressed": run === choice.column, dir: "auto" }, name);
      tab.addEventListener("click", () => chooseColumn(run));
      return tab;
    }),
  );
  // More columns than fit scroll; fewer keep their heads in view.
  $("lists").classList.toggle("scroll", columns.length > 4);
  $("lists").replaceChildren(sideBySide(query, columns));
  chooseColumn(choice.column);
  $("windows").replaceChildren(...teacherWindows(query));
  const place = shown.indexOf(query);
  $("place").textContent = place < 0 ? "" : `${place + 1} of ${shown.length}, by ${SORTS[choice.sort][0]}`;
  $("previous").disabled = place <= 0;
  $("next").disabled = place < 0 || place === shown.length - 1;
}

function aboutRun(query, run) {
  if (!query.values) return [""];
  const value = values(query)[run];
  const about = [`${data.metrics[choice.metric]} ${value.toFixed(3)}`];
  if (run !== choice.base) {
    const change = value - values(query)[choice.base];
    about.push(" ", make("span", { class: side(change) }, signed(change)));
  }
  const isRelevant = (grade) => grade >= data.levels[choice.metric];
  const relevant = Object.entries(query.grades).filter(([, grade]) => isRelevant(grade)).map(([doc]) => Number(doc));
  const all = Object.entries(query.judged).reduce((sum, [grade, n]) => sum + (isRelevant(grade) ? n : 0), 0);
  const listed = new Set(query.lists[run]?.[0]);
  if (all) about.push(` · ${relevant.filter((doc) => listed.has(doc)).length} of ${all} relevant`);
  return about;
}

function chooseColumn(run) {
  choice.column = run;
  [...$("tabs").children].forEach((tab, i) => tab.setAttribute("aria-pressed", i === run));
  [...$("lists").querySelectorAll(".column")].forEach((column, i) =>
    column.classList.toggle("chosen", i === run));
}

function gradeOf(query, doc) {
  const grade = query.grades[doc];
  const label = grade === undefined ? "not judged" : `grade ${grade}`;
  return make("span", { class: `grade ${level(grade)}`, title: label }, grade === undefined ? "–" : String(grade));
}

function showLegend(query) {
  const base = data.runs[choice.base];
  const grades = [...new Set(Object.values(query.grades))].sort((a, b) => a - b);
  const entry = (sign, text) => make("span", { dir: "auto" }, sign, text);
  const sign = (name, text) => make("span", { class: name }, text);
  const entries = [entry(sign("grade none", "–"), "not judged")];
  if (grades.length) {
    const chips = grades.map((grade) => sign(`grade ${level(grade)}`, String(grade)));
    entries.unshift(make("span", {}, ...chips, `judged grade; relevant: ${data.levels[choice.metric]} or more`));
  }
  if (data.runs.length > 1) {
    entries.push(
      entry(sign("better", "▲2"), `two ranks higher than in ${base}`),
      entry(sign("worse", "▼2"), "two lower"),
      entry(sign("better", "new"), `not listed by ${base}`),
      make("span", { class: "of-lines" }, "lines join the same passage; strong ones are relevant"),
    );
  }
  $("legend").replaceChildren(...entries);
}

/** Columns of passages, and lines between neighbours that join the same passage. */
function sideBySide(query, columns) {
  const box = make("div", { class: "columns" });
  const least = columns.length > 4 ? "15rem" : "0";
  box.style.gridTemplateColumns = columns.map(() => `minmax(${least}, 1fr)`).join(" var(--gutter) ");
  box.style.setProperty("--columns", columns.length);
  const rows = columns.map(() => new Map());
  const gutters = [];
  columns.forEach((column, c) => {
    if (c) {
      const svg = draw("svg", { class: "lines", preserveAspectRatio: "none", "aria-hidden": "true" });
      gutters.push(svg);
      box.append(svg);
    }
    const digits = decimals(column.scores);
    const items = column.docs.map((doc, i) => {
      const row = passage(query, column, doc, i, digits);
      rows[c].set(doc, row);
      return row;
    });
    box.append(
      make(
        "section",
        { class: "column", "aria-label": column.name },
        make("header", {}, make(column.short ? "h4" : "h2", { dir: "auto", title: column.name }, column.name), make("p", {}, ...column.about)),
        items.length ? make("ol", {}, ...items) : make("p", { class: "empty" }, column.empty),
      ),
    );
  });

  function drawLines() {
    const heads = rows.map((of) => [...of].map(([doc, row]) => [doc, row.offsetTop + Math.min(row.offsetHeight / 2, 30)]));
    const height = largest([...box.querySelectorAll(".column")].map((column) => column.offsetHeight)) || 1;
    gutters.forEach((svg, c) => {
      const right = new Map(heads[c + 1]);
      svg.setAttribute("viewBox", `0 0 100 ${height}`);
      svg.style.height = `${height}px`;
      const both = heads[c].filter(([doc]) => right.has(doc));
      // The most relevant lie on top.
      both.sort(([a], [b]) => (query.grades[a] ?? -1) - (query.grades[b] ?? -1));
      svg.replaceChildren(
        ...both.map(([doc, y]) =>
          draw("path", {
            class: level(query.grades[doc]),
            "data-doc": doc,
            d: `M0,${y}C50,${y} 50,${right.get(doc)} 100,${right.get(doc)}`,
          })),
      );
    });
  }

  function highlight(doc) {
    box.querySelectorAll(".hot").forEach((element) => element.classList.remove("hot"));
    gutters.forEach((svg) => svg.classList.toggle("dim", doc !== null));
    if (doc === null) return;
    rows.forEach((of) => of.get(doc)?.classList.add("hot"));
    gutters.forEach((svg) => {
      const line = svg.querySelector(`[data-doc="${doc}"]`);
      line?.classList.add("hot");
      if (line) svg.append(line);
    });
  }

  const docOf = (event) => {
    const row = event.target.closest(".row");
    return row ? Number(row.dataset.doc) : null;
  };
  box.addEventListener("mouseover", (event) => highlight(docOf(event)));
  box.addEventListener("mouseleave", () => highlight(null));
  box.addEventListener("focusin", (event) => highlight(docOf(event)));
  box.addEventListener("focusout", () => highlight(null));
  box.addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (!row || (String(getSelection()) && event.target.localName !== "button")) return;
    const open = row.classList.toggle("open");
    row.querySelector("button").setAttribute("aria-expanded", open);
  });
  const observer = new ResizeObserver(drawLines);
  box.querySelectorAll(".column").forEach((column) => observer.observe(column));
  return box;
}

function passage(query, column, doc, i, digits) {
  const row = make("li", { class: "row", "data-doc": doc });
  const button = make("button", { type: "button", "aria-expanded": "false", "aria-label": `rank ${i + 1}, show the whole text` }, String(i + 1));
  const move = make("span", { class: "move" });
  if (column.ranks) {
    const before = column.ranks.get(doc);
    const up = before - i - 1;
    if (before === undefined) move.classList.add("better");
    else if (up) move.classList.add(up > 0 ? "better" : "worse");
    move.textContent = before === undefined ? "new" : up > 0 ? `▲${up}` : up < 0 ? `▼${-up}` : "";
  }
  const text = data.texts[doc];
  row.append(
    button,
    gradeOf(query, doc),
    make("span", { class: "id", title: data.docs[doc] }, ...marked(data.docs[doc])),
    move,
  );
  if (column.short) {
    row.classList.add("short");
    return row;
  }
  row.append(
    make("span", { class: "score" }, column.scores[i].toFixed(digits).replace("-", "−")),
    text === null
      ? make("span", { class: "text lacking" }, "text not found")
      : make("span", { class: "text", dir: "auto" }, ...marked(text)),
  );
  return row;
}

/** What a teacher was asked about this query, window by window. */
function teacherWindows(query) {
  return (query.windows ?? []).flatMap((windows, run) => {
    if (!windows.length) return [];
    const repaired = windows.filter(([, , repairs]) => repairs.length).length;
    const details = make(
      "details",
      {},
      make("summary", { dir: "auto" },
        `${data.runs[run]} was asked about ${plural(windows.length, "window")}` +
        (repaired ? `; ${plural(repaired, "answer")} repaired` : "")),
    );
    details.addEventListener("toggle", () => {
      if (!details.open || details.children.length > 1) return;
      details.append(
        ...windows.map(([asked, replied, repairs], i) => {
          const ranks = new Map(asked.map((doc, j) => [doc, j + 1]));
          const column = (name, docs, more) => ({ name, docs, scores: [], about: [""], short: true, ...more });
          const title = `${i + 1} of ${windows.length}${repairs.length ? `; repaired: ${repairs.join(", ").replaceAll("_", " ")}` : ""}`;
          return make(
            "div",
            { class: "window" },
            make("h3", {}, title),
            sideBySide(query, [column("asked", asked), column("answered", replied, { ranks })]),
          );
        }),
      );
    });
    return [details];
  });
}

// ---- which of the two is shown

function route() {
  let id = location.hash.slice(1);
  try {
    id = decodeURIComponent(id);
  } catch {} // a broken link: no such query
  const query = id ? data.queries.find((one) => one.id === id) : null;
  const before = opened;
  opened = query ?? null;
  $("summary").hidden = Boolean(opened);
  $("query").hidden = !opened;
  if (opened) {
    showQuery(opened);
    scrollTo(0, 0);
    $("query-text").focus({ preventScroll: true });
  } else {
    $("lists").replaceChildren();
    $("windows").replaceChildren();
    if (id) fail(`There is no query ${id} on this page.`);
    else if (before) link(before)?.focus();
  }
  if (!id || opened) $("failure").hidden = true;
}

const link = (query) =>
  [...$("queries").querySelectorAll("a")].find((a) => a.getAttribute("href") === address(query));

function fail(message) {
  $("failure").textContent = message;
  $("failure").hidden = false;
}

function step(by) {
  if (opened) {
    const next = shown[shown.indexOf(opened) + by];
    if (next) location.hash = address(next);
    return;
  }
  const links = [...$("queries").querySelectorAll("a")];
  const at = links.indexOf(document.activeElement);
  links[at < 0 ? 0 : Math.min(links.length - 1, Math.max(0, at + by))]?.focus();
}

const KEYS = {
  j: () => step(1),
  ArrowRight: () => step(1),
  k: () => step(-1),
  ArrowLeft: () => step(-1),
  "/": () => {
    if (opened) location.hash = "";
    route();
    $("search").focus();
    $("search").select();
  },
  t: () => $("texts").click(),
  "?": () => $("keys").showModal(),
  Escape: () => {
    if (opened) location.hash = "";
  },
};

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  const field = event.target.closest("input, select");
  if (field && event.key === "Escape" && field.id === "search") {
    field.value = "";
    search();
    field.blur();
    return;
  }
  if (field && field.type !== "checkbox") return;
  const act = KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
}

// ---- light and dark

function storedTheme(value) {
  try { // some browsers refuse storage to pages from disk
    if (value) localStorage.setItem("rankdistillm-theme", value);
    return localStorage.getItem("rankdistillm-theme");
  } catch {
    return value ?? null;
  }
}

function showTheme(theme) {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  if (theme) document.documentElement.dataset.theme = theme;
  $("theme").setAttribute("aria-checked", (theme ?? system) === "dark");
}

// ---- start

function options(select, names, chosen) {
  select.replaceChildren(...names.map(([value, name]) => new Option(name, value, false, value === chosen)));
}

async function start() {
  showTheme(storedTheme());
  $("theme").addEventListener("click", () =>
    showTheme(storedTheme($("theme").getAttribute("aria-checked") === "true" ? "light" : "dark")));
  $("print").addEventListener("click", () => print());
  $("help").addEventListener("click", () => $("keys").showModal());
  data = await unpack($("data").textContent);
  $("data").textContent = "";
  for (const query of data.queries) query.docs = [...new Set(query.lists.flatMap((listed) => listed?.[0] ?? []))];
  data.bestGrade = largest(data.queries.flatMap((query) => Object.values(query.grades)));
  choice.base = data.baseline;
  choice.run = data.runs.length - 1 === choice.base ? 0 : data.runs.length - 1;
  options($("metric"), data.metrics.map((name, i) => [i, name]), choice.metric);
  for (const name of ["run", "base"]) options($(name), data.runs.map((run, i) => [i, run]), choice[name]);
  options($("sort"), Object.entries(SORTS).map(([key, [name]]) => [key, name]), choice.sort);
  for (const name of ["metric", "run", "base", "sort"]) {
    $(name).addEventListener("change", () => {
      choice[name] = name === "sort" ? $(name).value : Number($(name).value);
      list();
    });
  }
  let waiting;
  $("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(search, 120);
  });
  $("more").addEventListener("click", () => showQueries(shown.length));
  $("chart").addEventListener("mousemove", pointed);
  $("chart").addEventListener("mouseleave", () => {
    $("chart").querySelector(".pointed")?.remove();
    $("pointed").textContent = "";
  });
  $("chart").addEventListener("click", (event) => {
    const query = pointAt(event);
    if (query) location.hash = address(query);
  });
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("texts").addEventListener("change", () => {
    $("lists").classList.toggle("no-texts", !$("texts").checked);
  });
  document.addEventListener("keydown", pressed);
  addEventListener("hashchange", route);
  list();
  $("gains").hidden = false;
  route();
  document.documentElement.dataset.ready = "true";
}

start().catch((error) => fail(`This page cannot be shown: ${error.message}. It needs a browser from 2024 or later.`));
