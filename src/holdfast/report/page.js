/* The page without this script is whole: drawings, strips and tables stand. The script adds the theatre, tables
   that sort, and charts that answer to the pointer. No part may stop another. */
(() => {
"use strict";
const $ = (query, from = document) => from.querySelector(query);
const $$ = (query, from = document) => [...from.querySelectorAll(query)];
const make = (tag, attributes = {}, ...inside) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...inside);
  return node;
};
const data = (id) => { const node = document.getElementById(id); return node && JSON.parse(node.textContent); };
const say = (text) => { const live = document.getElementById("live"); if (live) live.textContent = text; };
const attempt = (part) => { try { part(); } catch (error) { /* what is on the page already stays */ } };
const holdfast = (window.holdfast = { show: () => false });

/* Tables */

const NUMBER = /^[≈<]?\s*([+−-]?[\d\u202f ]*\.?\d+(?:e[−-]?\d+)?)/;
function valueOf(cell) {
  if ("value" in cell.dataset) return Number(cell.dataset.value);
  const found = NUMBER.exec(cell.textContent.trim());
  return found ? Number(found[1].replace(/[\u202f ]/g, "").replace(/−/g, "-")) : NaN;
}
function sortable(table) {
  const body = table.tBodies[0], rows = [...body.rows];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const name = head.textContent;
    const button = make("button", { type: "button" }, name);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const filled = rows.map((row) => row.cells[column]).filter((c) => !/^[–\s]*$/.test(c.textContent));
      const numbers = filled.length > 0 && filled.every((cell) => Number.isFinite(valueOf(cell)));
      const now = head.getAttribute("aria-sort");
      const down = now ? now === "ascending" : numbers && column > 0;
      const key = (row) => numbers ? valueOf(row.cells[column]) : row.cells[column].textContent.trim();
      const empty = (row) => !filled.includes(row.cells[column]);
      const order = (a, b) => numbers ? key(a) - key(b) : key(a).localeCompare(key(b), undefined, { numeric: true });
      const sorted = [...rows].sort((a, b) => empty(a) - empty(b) || (down ? -1 : 1) * (empty(a) ? 0 : order(a, b)));
      $$("[aria-sort]", table.tHead).forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...sorted);
      say(`Sorted by ${name}, ${down ? "descending" : "ascending"}.`);
    });
  });
}
attempt(() => $$("table.sortable").forEach(sortable));

/* What scrolls sideways can be reached by keyboard */

const reach = () => $$(".scroll").forEach((box) => {
  if (box.scrollWidth > box.clientWidth + 1 && !box.classList.contains("live")) {
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "Scrolls sideways");
  } else if (box.hasAttribute("tabindex")) {
    for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
  }
});
attempt(() => { reach(); window.addEventListener("resize", reach); document.addEventListener("toggle", reach, true); });

/* The theatre */

function theatre(box, { images, runs }) {
  const pick = (name) => $(`[data-pick="${name}"]`, box), words = (name) => $(`[data-words="${name}"]`, box);
  const stage = $("[data-stage]", box), at = { run: 0, attack: 0, size: 0, row: 0 };
  const run = () => runs[at.run], attack = () => run().attacks[at.attack];
  const size = () => attack().sizes[at.size], row = () => size().rows[at.row];

  const options = (select, names, chosen) => {
    select.replaceChildren(...names.map((name, i) => new Option(name, String(i), i === chosen, i === chosen)));
    select.closest(".pick").hidden = names.length < 2 && select.dataset.pick === "run";
  };
  const radios = () => pick("size").replaceChildren(...attack().sizes.map((s, i) => {
    const input = make("input", { type: "radio", name: "size", value: String(i) });
    input.checked = i === at.size;
    input.addEventListener("change", () => { choose({ size: i }); });
    const label = make("label", { title: s.words }, input, make("span", {}, s.label));
    return label;
  }));
  const titled = (r) => `#${r.id}, ${r.class}: ${r.held ? "held" : "lost"}${r.kind ? `, ${r.kind}` : ""}`;

  function choose(change) {
    const id = change.id ?? (attack() && size() && row() ? row().id : null);
    if ("run" in change) {
      const name = attack().name, eps = size().eps;
      at.run = change.run;
      at.attack = Math.max(0, run().attacks.findIndex((a) => a.name === name));
      resize(eps);
    }
    if ("attack" in change) { const eps = size().eps; at.attack = change.attack; resize(eps); }
    if ("size" in change) at.size = change.size;
    if ("row" in change) at.row = change.row;
    else {
      const same = size().rows.findIndex((r) => r.id === id);
      at.row = same >= 0 ? same : first();
    }
    draw();
  }
  const resize = (eps) => {
    const same = attack().sizes.findIndex((s) => Math.abs(s.eps - eps) < 1e-6);
    at.size = same >= 0 ? same : attack().first;
  };
  const first = () => Math.max(0, size().rows.findIndex((r) => r.kind.startsWith("median")));
  const step = (by) => { const n = size().rows.length; choose({ row: (at.row + by + n) % n }); };

  const big = (part, place, caption, alt) => make("figure", { "data-part": part },
    make("img", { class: "big", src: images[place], alt }), make("figcaption", {}, caption));
  const near = (when, title, list) => make("div", { class: `row ${when}` }, make("h3", {}, title),
    make("ol", {}, ...list.map(([place, name, right, distance]) => make("li", { class: right ? "right" : "wrong" },
      make("img", { src: images[place], alt: `${name}, ${right ? "right" : "wrong"}` }),
      make("b", { "aria-hidden": "true" }, right ? "✓" : "✗"), ` ${name}`, make("small", {}, distance)))));

  function draw() {
    const a = attack(), r = row();
    if (!r) return;
    options(pick("run"), runs.map((one) => one.label), at.run);
    options(pick("attack"), run().attacks.map((one) => one.title), at.attack);
    radios();
    options(pick("query"), size().rows.map(titled), at.row);
    words("moved").textContent = a.moved[0].toUpperCase() + a.moved.slice(1);
    words("says").textContent = `${a.says} With ${size().words}.`;
    const verdict = make("span", { class: r.held ? "is-pass" : "is-fail" }, r.held ? "✓ It held." : "✗ It was lost.");
    const kind = r.kind ? ` (${r.kind})` : "";
    const n = r.before.length;
    words("told").replaceChildren(make("b", {}, `${a.moved[0].toUpperCase()}${a.moved.slice(1)} #${r.id}, class ${r.class}`),
      `${kind}: ${r.right[0]} of the ${n} nearest right before, ${r.right[1]} of ${n} after. `, verdict);
    stage.replaceChildren(
      big("query", r.three[0], a.moved, `${a.moved} of class ${r.class}`),
      big("change", r.three[1], "change, magnified", "the change, magnified; grey is none"),
      big("attacked", r.three[2], `attacked ${a.moved}`, `attacked ${a.moved}`),
      near("before", "Nearest before the attack", r.before), near("after", "Nearest after the attack", r.after));
  }

  for (const name of ["run", "attack"]) {
    pick(name).addEventListener("change", (event) => choose({ [name]: Number(event.target.value) }));
  }
  pick("query").addEventListener("change", (event) => choose({ row: Number(event.target.value) }));
  $$("[data-step]", box).forEach((b) => b.addEventListener("click", () => step(Number(b.dataset.step))));
  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const on = document.activeElement, inside = box.contains(on) && !on.matches("select, input");
    const bounds = box.getBoundingClientRect(), seen = bounds.top < innerHeight && bounds.bottom > 0;
    if (inside || ((!on || on === document.body) && seen)) { event.preventDefault(); step(by); }
  });
  let start = null;
  stage.addEventListener("touchstart", (event) => { const t = event.changedTouches[0]; start = [t.clientX, t.clientY]; }, { passive: true });
  stage.addEventListener("touchend", (event) => {
    if (!start) return;
    const t = event.changedTouches[0], x = t.clientX - start[0], y = t.clientY - start[1];
    start = null;
    if (Math.abs(x) > 40 && Math.abs(x) > 2 * Math.abs(y)) step(x < 0 ? 1 : -1);
  }, { passive: true });

  holdfast.show = (label, name, id, eps) => {
    const i = runs.findIndex((one) => one.label === label);
    const j = i < 0 ? -1 : runs[i].attacks.findIndex((one) => one.name === name);
    const sizes = j < 0 ? [] : runs[i].attacks[j].sizes;
    const has = (s) => s.rows.some((r) => r.id === Number(id));
    const firsts = j < 0 ? [] : [sizes[runs[i].attacks[j].first], ...sizes];
    const usual = sizes.indexOf(firsts.find(has));
    const exact = sizes.findIndex((s) => Math.abs(s.eps - eps) < 1e-6 && has(s));
    const size = exact >= 0 ? exact : usual;
    if (size < 0) { say(`Query ${id} is not among the stored examples of ${name}.`); return false; }
    Object.assign(at, { run: i, attack: j, size });
    choose({ id: Number(id) });
    box.scrollIntoView({ block: "start" });
    stage.focus({ preventScroll: true });
    return true;
  };

  at.size = attack().first;
  at.row = first();
  draw();
  box.hidden = false;
}
attempt(() => { const box = $(".theatre"), shown = data("theatre-data"); if (box && shown) theatre(box, shown); });

/* Charts */

const WORD = /^(ink|ground|panel|line|soft|accent|clean|attacked|wrong|right|grid|c[0-7])(?:\/([\d.]+))?$/;
function painted(spec) {
  const style = getComputedStyle(document.documentElement);
  const colour = (text) => {
    const found = WORD.exec(text);
    if (!found) return text;
    const hex = style.getPropertyValue(`--${found[1]}`).trim();
    if (!found[2]) return hex;
    const long = hex.length === 4 ? hex.replace(/[^#]/g, "$&$&") : hex;
    return `rgba(${[1, 3, 5].map((i) => parseInt(long.slice(i, i + 2), 16)).join(",")},${found[2]})`;
  };
  const walk = (node, key) => {
    if (typeof node === "string") return /colou?r(s|scale)?$/i.test(key) ? colour(node) : node;
    if (Array.isArray(node)) return node.map((inner) => walk(inner, key));
    if (node && typeof node === "object") return Object.fromEntries(Object.entries(node).map(([k, v]) => [k, walk(v, k)]));
    return node;
  };
  const font = { family: getComputedStyle(document.body).fontFamily, size: 13, color: colour("ink") };
  const layout = walk(spec.layout || {}, "");
  const clear = "rgba(0,0,0,0)";
  const axis = { gridcolor: colour("grid"), linecolor: colour("soft"), tickcolor: colour("soft"), zerolinecolor: colour("line") };
  const still = matchMedia("(pointer: coarse)").matches ? { fixedrange: true } : {};
  for (const name of new Set(["xaxis", "yaxis", ...Object.keys(layout).filter((k) => /^[xy]axis\d*$/.test(k))])) {
    layout[name] = { ...axis, ...still, ...layout[name] };
  }
  layout.font = { ...font, ...layout.font };
  layout.hoverlabel = { bgcolor: colour("panel"), bordercolor: colour("line"), ...layout.hoverlabel, font: { ...font, ...(layout.hoverlabel || {}).font } };
  return { data: walk(spec.data || [], ""), layout: { dragmode: false, autosize: true, ...layout, paper_bgcolor: clear, plot_bgcolor: clear } };
}
function library() {
  if (window.Plotly) return window.Plotly;
  const source = document.getElementById("plotly");
  if (source && !library.tried) {
    library.tried = true;
    document.head.append(make("script", {}, source.textContent));
  }
  return window.Plotly;
}
const drawn = [];
function chart(box) {
  const Plotly = library(), svg = $("svg", box), spec = data(box.dataset.spec);
  if (!Plotly || !spec || box.classList.contains("live")) return;
  const holder = make("div", { class: "drawn", role: "img", "aria-label": (svg && svg.getAttribute("aria-label")) || "" });
  const height = Math.max(240, svg ? svg.getBoundingClientRect().height : 0);
  const give_up = () => { box.classList.remove("live"); holder.remove(); };
  const shown = () => { const p = painted(spec); p.layout.height = p.layout.height || height; return [p.data, p.layout, { ...(data("plot-config") || {}) }]; };
  try {
    box.append(holder);
    box.classList.add("live");
    Plotly.newPlot(holder, ...shown()).then(() => {
      drawn.push(() => Plotly.react(holder, ...shown()));
      holder.on("plotly_click", ({ points }) => {
        const own = points[0] && points[0].customdata;
        const meta = { ...(spec.layout || {}).meta, ...((points[0] || {}).data || {}).meta };
        if (own === undefined || own === null) return;
        const { run, attack, id, eps } = typeof own === "object" && !Array.isArray(own) ? { ...meta, ...own } : { ...meta, id: Array.isArray(own) ? own[0] : own };
        if (run !== undefined && id !== undefined) holdfast.show(run, attack, id, eps);
      });
      reach();
    }, give_up);
  } catch (error) { give_up(); }
}
attempt(() => {
  if (!document.getElementById("plotly")) return;
  const boxes = $$("[data-spec]");
  if (!("IntersectionObserver" in window)) { boxes.forEach((box) => attempt(() => chart(box))); return; }
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) { seen.unobserve(target); attempt(() => chart(target)); }
    }
  }, { rootMargin: "500px 0px" });
  boxes.forEach((box) => seen.observe(box));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach((again) => attempt(again)));
});
})();
