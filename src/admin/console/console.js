// The console: asks the daemon that it came from, every two seconds, and shows what it says. Text of records and
// configurations only ever becomes text nodes.
"use strict";

const EVERY_MS = 2000;
const HISTORY = 150;
const ROWS_MAX = 200;
const $ = (id) => document.getElementById(id);
const history = new Map();
let last = { status: null, graph: null };

function node(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat()) if (child != null && child !== false) made.append(child);
  return made;
}
function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  made.append(...children);
  return made;
}
const number = (value) => value >= 1e6 ? (value / 1e6).toFixed(1) + "M" : value >= 1e4 ? (value / 1e3).toFixed(1) + "k" : String(Math.round(value * 10) / 10);
const clip = (text, most) => text.length > most ? text.slice(0, most - 1) + "…" : text;
function ago(time) {
  const seconds = Math.max(0, Math.round((Date.now() - Date.parse(time)) / 1000));
  if (seconds < 90) return `${seconds} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 129600 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

async function ask(path, options) {
  const answer = await fetch(path, { credentials: "same-origin", ...options });
  if (answer.status === 401) $("login").hidden = false;
  return answer;
}

// ---- every two seconds ----------------------------------------------------------------------------------------------

async function refresh() {
  try {
    const [status, graph, metrics] = await Promise.all([
      ask("api/v1/status"), ask("api/v1/graph"), fetch("metrics"),
    ]);
    if (!status.ok || !graph.ok) throw new Error(`the daemon answers ${status.status}`);
    last = { status: await status.json(), graph: await graph.json() };
    remember(last.status, commits(metrics.ok ? await metrics.text() : ""));
    $("trouble").hidden = true;
    draw();
  } catch (error) {
    $("trouble").textContent = `No answer from the daemon (${error.message}). What stands here is as it last was.`;
    $("trouble").hidden = false;
  }
}

// Sum and count of the routes' commit times.
function commits(text) {
  const found = new Map();
  for (const [, part, labels, value] of text.matchAll(/^millrace_commit_duration_seconds_(sum|count)\{([^}]*)\} (\S+)$/gm)) {
    const route = /route="([^"]*)"/.exec(labels);
    if (!route) continue;
    const of = found.get(route[1]) || {};
    of[part] = Number(value);
    found.set(route[1], of);
  }
  return found;
}

function remember(status, commit) {
  for (const [name, route] of Object.entries(status.routes)) {
    const of = history.get(name) || { rate: [], lag: [], commit: [], before: null };
    const now = { at: Date.now(), consumed: route.totals.consumed, commit: commit.get(name) || {} };
    if (of.before) {
      const seconds = (now.at - of.before.at) / 1000;
      of.rate.push(Math.max(0, now.consumed - of.before.consumed) / seconds);
      const count = (now.commit.count || 0) - (of.before.commit.count || 0);
      of.commit.push(count > 0 ? ((now.commit.sum || 0) - (of.before.commit.sum || 0)) / count * 1000 : 0);
    }
    of.lag.push(route.lag ? route.lag.records : 0);
    of.before = now;
    for (const list of [of.rate, of.lag, of.commit]) while (list.length > HISTORY) list.shift();
    history.set(name, of);
  }
  for (const name of history.keys()) if (!(name in status.routes)) history.delete(name);
}

// ---- drawing --------------------------------------------------------------------------------------------------------

function draw() {
  const { status, graph } = last;
  const name = status.instance ? `${status.instance} · ` : "";
  $("process").textContent = `${name}version ${status.version} · generation ${status.generation} · up ${ago(status.started_at)}` +
    (status.shutting_down ? " · shutting down" : "");
  drawReload(status);
  drawTopology(graph, status);
  drawRoutes(status);
  drawTapRoutes(status);
}

function drawReload(status) {
  const reload = status.last_reload;
  const box = $("reload");
  box.hidden = !reload;
  if (!reload) return;
  const refused = reload.outcome === "rejected";
  box.className = refused ? "banner bad" : "banner";
  const problems = (reload.problems || []).map((problem) => {
    const place = problem.file ? `${problem.file}:${problem.line}:${problem.column}: ` : "";
    return node("li", { class: "mono" }, place + problem.message);
  });
  const hazards = (reload.hazards || []).map((hazard) => node("li", {}, hazard.message || JSON.stringify(hazard)));
  box.replaceChildren(
    `${refused ? "The last change was refused, and what runs goes on as it was" : "Last change: " + reload.outcome}, ${ago(reload.at)} ago: ${reload.message}`,
    problems.length + hazards.length ? node("ul", {}, problems, hazards) : "",
  );
}

function drawTopology(graph, status) {
  const lanes = { from: new Map(), route: new Map(), to: new Map() };
  const place = (lane, name) => {
    if (!lane.has(name)) lane.set(name, lane.size);
    return lane.get(name);
  };
  const edges = [];
  for (const route of graph.routes) {
    const at = place(lanes.route, route.name);
    for (const topic of route.from) edges.push(["in", place(lanes.from, topic), at, ""]);
    for (const to of route.to) edges.push(["out", at, place(lanes.to, to.topic), ""]);
    if (route.dead_letters) edges.push(["out", at, place(lanes.to, route.dead_letters), "dead"]);
    if (!route.shadow) continue;
    const beside = place(lanes.route, shadowOf(route));
    for (const topic of route.from) edges.push(["in", place(lanes.from, topic), beside, "beside"]);
  }
  const rows = Math.max(1, lanes.from.size, lanes.route.size, lanes.to.size);
  const step = 64, width = 960, box = 230, height = rows * step + 10;
  const y = (lane, index) => (height - lane.size * step) / 2 + index * step + 5;
  const x = { from: 0, route: (width - box) / 2, to: width - box };
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": describe(graph) });
  for (const [way, a, b, kind] of edges) {
    const [x1, y1, x2, y2] = way === "in"
      ? [x.from + box, y(lanes.from, a) + 26, x.route, y(lanes.route, b) + 26]
      : [x.route + box, y(lanes.route, a) + 26, x.to, y(lanes.to, b) + 26];
    const middle = (x1 + x2) / 2;
    drawing.append(svg("path", { d: `M${x1},${y1} C${middle},${y1} ${middle},${y2} ${x2},${y2}`, class: kind }));
  }
  const draw = (kind, lane, left, name, index, small, state) => {
    const top = y(lane, index);
    const group = svg("g", { class: `${kind} ${state || ""}` });
    const text = svg("text", { x: left + 10, y: top + 22 });
    text.textContent = clip(name, 30);
    const under = svg("text", { x: left + 10, y: top + 40, class: "small" });
    under.textContent = clip(small, 38);
    const title = svg("title", {});
    title.textContent = `${name}: ${small}`;
    group.append(title, svg("rect", { x: left + 1, y: top, width: box - 2, height: 52, rx: 6 }), text, under);
    drawing.append(group);
  };
  for (const [name, index] of lanes.from) draw("topic", lanes.from, x.from, name, index, lagOf(status, name));
  for (const of of graph.routes) {
    const route = status.routes[of.name];
    const rate = (history.get(of.name) || { rate: [] }).rate.at(-1) || 0;
    const at = (name) => lanes.route.get(name);
    draw("route", lanes.route, x.route, of.name, at(of.name), `${number(rate)}/s · ${plugins(of)}`, route && route.state);
    if (!of.shadow) continue;
    const seen = route && route.shadow;
    const differ = seen ? `${number(seen.differing)} of ${number(seen.compared)} differ · ` : "";
    draw("beside", lanes.route, x.route, shadowOf(of), at(shadowOf(of)), differ + plugins(of.shadow));
  }
  for (const [name, index] of lanes.to) draw("topic", lanes.to, x.to, name, index, name.startsWith("^") ? "a plugin names the topic" : "topic");
  $("topology").replaceChildren(drawing);
}

function lagOf(status, topic) {
  let records = 0, seen = false;
  for (const route of Object.values(status.routes)) {
    for (const partition of (route.lag && route.lag.partitions) || []) {
      if (partition.topic === topic) [records, seen] = [records + partition.records, true];
    }
  }
  return seen ? `lag ${number(records)}` : topic.startsWith("^") ? "pattern" : "topic";
}

const shadowOf = (route) => `shadow of ${route.name}`;
const plugins = (of) => of.through.join(" → ") || "no plugins";
const describe = (graph) => graph.routes
  .map((route) => `${route.from.join(", ")} through ${route.name} (${plugins(route)}) to ${route.to.map((to) => to.topic).join(", ")}` +
    (route.shadow ? `, beside it its shadow (${plugins(route.shadow)})` : ""))
  .join("; ");

function chart(title, values, unit) {
  const most = Math.max(1e-9, ...values);
  const points = values.map((value, index) => `${(index / Math.max(1, HISTORY - 1)) * 100},${32 - (value / most) * 30}`).join(" ");
  const now = values.length ? values.at(-1) : 0;
  const drawing = svg("svg", { viewBox: "0 0 100 34", preserveAspectRatio: "none", "aria-hidden": "true" }, svg("polyline", { points }));
  return node("figure", {}, drawing, node("figcaption", {}, `${title} ${number(now)}${unit}`));
}

// Cards are made once and filled again, so that focus and open details stay where they are.
function drawRoutes(status) {
  const box = $("routes");
  const names = Object.keys(status.routes);
  for (const card of [...box.children]) if (!names.includes(card.dataset.route)) card.remove();
  for (const name of names) {
    let card = [...box.children].find((of) => of.dataset.route === name);
    if (!card) {
      card = node("article", { class: "card", "aria-label": `route ${name}` });
      card.dataset.route = name;
      const act = (verb, text) => node("button", { type: "button", "data-verb": verb, onclick: () => tell(name, verb) }, text);
      card.append(
        node("div", { class: "head" }, node("h3", {}, name), node("span", {})),
        node("div", { class: "words" }), node("div", { class: "charts" }),
        node("details", {}, node("summary", {}, "Assignment, plugins, totals"), node("div", { class: "more" })),
        node("div", { class: "actions" }, act("pause", "Pause"), act("resume", "Resume"), act("restart", "Restart")),
        node("p", { class: "dim said", "aria-live": "polite" }),
      );
      box.append(card);
    }
    fill(card, name, status.routes[name]);
  }
}

function fill(card, name, route) {
  const state = card.querySelector(".head span");
  state.className = `state ${route.state}`;
  state.textContent = `${route.state}, ${ago(route.since)}`;
  const words = [];
  if (route.reason) words.push(node("p", {}, route.reason));
  if (route.next_attempt) words.push(node("p", { class: "dim" }, `tries again at ${route.next_attempt}`));
  for (const worker of route.workers || []) {
    for (const held of [...(worker.stopped || []), ...(worker.retrying || [])]) {
      const at = held.offset == null ? "" : ` offset ${held.offset}`;
      words.push(node("p", { class: "fault" }, `${held.topic}/${held.partition}${at}: ${held.code}: ${held.message}`));
    }
  }
  if (route.last_fault) {
    const fault = route.last_fault;
    const by = fault.plugin ? ` in ${fault.plugin}` : "";
    words.push(node("p", { class: "dim" }, `last fault ${ago(fault.at)} ago, ${fault.topic}/${fault.partition} offset ${fault.offset}${by}: ${fault.code}: ${fault.message}`));
  }
  if (route.shadow) words.push(...shadowWords(route.shadow));
  if (route.lag && route.lag.alert) words.push(node("p", { class: "fault" }, "above its lag_alert"));
  card.querySelector(".words").replaceChildren(...words);
  const of = history.get(name) || { rate: [], lag: [], commit: [] };
  card.querySelector(".charts").replaceChildren(
    chart("in", of.rate, "/s"), chart("lag", of.lag, ""), chart("commit", of.commit, " ms"));
  const more = [node("p", {}, `${route.delivery}, group `, node("code", {}, route.group))];
  for (const worker of route.workers || []) {
    const owned = Object.entries(worker.assignment || {}).map(([topic, partitions]) => `${topic} ${partitions.join(", ")}`);
    more.push(node("p", {}, `worker ${worker.worker} (generation ${worker.generation}): ${owned.join("; ") || "no partitions"}`));
  }
  for (const plugin of route.plugins || []) more.push(node("p", {}, `${plugin.plugin} `, node("code", {}, plugin.sha256.slice(0, 16))));
  const totals = route.totals;
  more.push(node("p", {}, `${totals.consumed} in, ${totals.produced} out, ${totals.filtered} filtered, ${totals.skipped} skipped, ${totals.dead_letters} dead letters`));
  card.querySelector(".more").replaceChildren(...more);
  card.querySelector('[data-verb="pause"]').hidden = route.state === "paused" || route.state === "disabled";
  card.querySelector('[data-verb="resume"]').hidden = route.state !== "paused";
  card.querySelector('[data-verb="restart"]').hidden = route.state === "disabled";
}

function shadowWords(shadow) {
  const kinds = Object.entries(shadow.differences).map(([kind, records]) => `${records} ${kind}`).join(", ");
  const skipped = shadow.skipped ? `; ${shadow.skipped} skipped while it was busy` : "";
  const by = shadow.plugins.map((plugin) => plugin.plugin).join(" → ") || "no plugins";
  const examples = shadow.examples.map((one) =>
    node("li", {}, `${one.topic}/${one.partition} offset ${one.offset}: ${one.differences.join(", ")}: ${one.first} → ${one.second}`));
  const summary = `shadow (${by}): ${shadow.differing} of ${shadow.compared} records differ${kinds && ` (${kinds})`}${skipped}`;
  return [node("p", { class: "shadow" }, summary), ...(examples.length ? [node("ul", { class: "dim" }, ...examples)] : [])];
}

async function tell(name, verb) {
  const card = [...$("routes").children].find((of) => of.dataset.route === name);
  const said = card.querySelector(".said");
  said.textContent = `${verb}…`;
  const answer = await ask(`api/v1/routes/${encodeURIComponent(name)}/${verb}`, { method: "POST" });
  const body = await answer.json().catch(() => ({}));
  said.textContent = answer.ok ? "" : (body.error && body.error.message) || body.message || `refused (${answer.status})`;
  await refresh();
}

// ---- tap ------------------------------------------------------------------------------------------------------------

let listening = null;

function drawTapRoutes(status) {
  const select = $("tap-route");
  const names = Object.keys(status.routes);
  if (names.join("\n") === [...select.options].map((option) => option.value).join("\n")) return;
  const chosen = select.value;
  select.replaceChildren(...names.map((name) => node("option", { value: name, selected: name === chosen }, name)));
}

function stopTap() {
  if (listening) listening.close();
  listening = null;
  $("tap-toggle").textContent = "Listen";
  $("tap-state").textContent = "";
}

function startTap() {
  const query = new URLSearchParams();
  for (const [name, id] of [["stage", "tap-stage"], ["key", "tap-key"], ["sample", "tap-sample"]]) {
    if ($(id).value) query.set(name, $(id).value);
  }
  const name = $("tap-route").value;
  listening = new EventSource(`api/v1/routes/${encodeURIComponent(name)}/tap?${query}`, { withCredentials: true });
  $("tap-toggle").textContent = "Stop";
  $("tap-state").textContent = `listening to ${name}`;
  listening.addEventListener("record", (event) => showRecord(JSON.parse(event.data)));
  listening.addEventListener("missed", (event) => {
    $("tap-state").textContent = `listening to ${name}; ${event.data} records passed unseen`;
  });
  listening.onerror = () => { $("tap-state").textContent = `connecting to ${name}…`; };
}

const text = (bytes) => bytes == null ? "null" : typeof bytes === "string" ? bytes : `base64 ${bytes.base64}`;

function showRecord(seen) {
  const record = seen.record;
  let became = seen.stage === "source" ? "" : record ? `→ ${seen.destination || "the default destinations"}` : "dropped";
  if (seen.stage === "step") became = record ? "let through" : "dropped";
  if (seen.fault) became = `${seen.fault.code}: ${seen.fault.message}`;
  const stage = seen.plugin ? `${seen.stage} ${seen.plugin}` : seen.stage;
  const rows = $("tap-rows");
  rows.prepend(node("tr", {},
    node("td", {}, stage), node("td", {}, `${seen.topic}/${seen.partition}@${seen.offset}`),
    node("td", {}, record ? clip(text(record.key), 60) : ""), node("td", {}, record ? clip(text(record.value), 400) : ""),
    node("td", { class: seen.fault ? "fault" : "" }, became)));
  while (rows.children.length > ROWS_MAX) rows.lastChild.remove();
}

$("tap").addEventListener("submit", (event) => {
  event.preventDefault();
  if (listening) stopTap(); else startTap();
});

// ---- sign-in, theme -------------------------------------------------------------------------------------------------

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = await fetch("api/v1/session", { method: "POST", headers: { Authorization: `Bearer ${$("token").value}` } });
  $("token").value = "";
  $("login").hidden = answer.ok;
  if (answer.ok) refresh(); else $("token").focus();
});

$("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* private windows keep nothing */ }
});
try {
  const theme = localStorage.getItem("theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch { /* as above */ }

refresh();
setInterval(() => { if (!document.hidden) refresh(); }, EVERY_MS);
