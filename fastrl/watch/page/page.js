// The page of `fastrl watch`: it asks the server for what has changed, and draws it.
// All text from runs reaches the page as text, never as HTML.
"use strict";

const EVERY_MS = { running: 5000, idle: 10000, lost: 5000 };
const FIRST_CHARTS = [
  "training/return_mean", "evaluation/return_mean", "training/fps", "training/entropy",
  "training/explained_variance", "training/approx_kl", "training/loss",
];
const MOST_CHARTS_AT_FIRST = 5;
const MOST_GROUPS_AT_FIRST = 8;
const MOST_WORKERS = 12;
const FEW_POINTS = 20;
const COLOURS = 8;
const THEMES = {
  auto: ["as the system", "M8 1a7 7 0 1 0 0 14A7 7 0 0 0 8 1zm0 1.5v11a5.5 5.5 0 0 1 0-11z"],
  light: ["light", "M8 4.5a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7zM7.3 0h1.4v2.6H7.3zM7.3 13.4h1.4V16H7.3zM0 7.3h2.6v1.4H0zM13.4 7.3H16v1.4h-2.6z"],
  dark: ["dark", "M6.2 1.2A7 7 0 1 0 14.8 9.8 5.8 5.8 0 0 1 6.2 1.2z"],
};

const byId = (id) => document.getElementById(id);
const kept = JSON.parse(localStorage.getItem("fastrl") || "{}");
const page = {
  overview: null, focus: null, shownVersion: -1, timer: 0, charts: [],
  hidden: new Map(), over: "steps", theme: kept.theme in THEMES ? kept.theme : "auto",
};

function keep() {
  const charts = page.charts.map((chart) => chart.metric);
  localStorage.setItem("fastrl", JSON.stringify({ theme: page.theme, charts }));
}

/** Make an element: properties, attributes (with a dash or `role`), and children. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "role" || name.includes("-")) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const colourOf = (group) => `var(--c${group % COLOURS})`;
const swatch = (colour) => {
  const found = make("span", { className: "swatch" });
  found.style.setProperty("--colour", colour);
  return found;
};

/** The colour that a canvas takes for a CSS value. */
function resolved(colour) {
  const probe = make("span", { hidden: true });
  probe.style.color = colour;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function faded(colour, alpha) {
  const numbers = colour.match(/[\d.]+/g);
  return colour.startsWith("rgb") ? `rgba(${numbers.slice(0, 3).join(",")},${alpha})` : colour;
}

function number(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size >= 1e9) return `${trimmed(value / 1e9)}G`;
  if (size >= 1e6) return `${trimmed(value / 1e6)}M`;
  if (size >= 1e4) return `${trimmed(value / 1e3)}k`;
  if (size !== 0 && size < 1e-3) return value.toExponential(1);
  return trimmed(value);
}

function trimmed(value) {
  return String(Number(value.toPrecision(Math.abs(value) >= 1000 ? 4 : 3)));
}

function duration(seconds) {
  if (seconds === null || seconds === undefined || !isFinite(seconds)) return "–";
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  return `${trimmed(seconds / 3600)} h`;
}

const percent = (share) => `${Math.round(100 * share)} %`;

async function ask(path, parameters = {}) {
  const answer = await fetch(`/api/${path}?${new URLSearchParams(parameters)}`);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

// ------------------------------------------------------------------------------------ the loop

async function refresh() {
  clearTimeout(page.timer);
  let wait = EVERY_MS.idle;
  try {
    page.overview = await ask("overview");
    const { runs, version } = page.overview;
    const running = runs.filter((run) => run.state === "running").length;
    if (running) wait = EVERY_MS.running;
    status("live", running ? `${running} running` : "up to date");
    if (version !== page.shownVersion) {
      showOverview();
      await showDetails();
      page.shownVersion = version;
    }
  } catch (error) {
    wait = EVERY_MS.lost;
    status("lost", error instanceof TypeError ? "not connected; trying again" : String(error.message));
  }
  clearTimeout(page.timer);
  if (!document.hidden) page.timer = setTimeout(refresh, wait);
}

function status(kind, text) {
  byId("status").className = kind;
  if (byId("status-text").textContent !== text) byId("status-text").textContent = text;
}

function showOverview() {
  const { runs, groups, places, title, metrics } = page.overview;
  byId("layout").hidden = !runs.length;
  byId("empty").hidden = runs.length > 0;
  byId("place").textContent = places.join(", ");
  byId("common").textContent = title;
  if (!runs.length) return;
  groups.forEach(({ group }, index) => {
    if (!page.hidden.has(group)) {
      page.hidden.set(group, index < groups.length - MOST_GROUPS_AT_FIRST);
    }
  });
  if (!runs.some((run) => run.name === page.focus)) {
    page.focus = (runs.find((run) => run.state === "running") || runs[0]).name;
  }
  if (!page.charts.length) beginCharts(metrics);
  showRuns();
}

async function showDetails() {
  if (!page.overview.runs.length) return;
  const [run, faults, found] = await Promise.all([
    ask("run", { run: page.focus }), ask("faults"), ask("differences"),
    ...page.charts.map((chart) => chart.load()),
  ]);
  showFocus(run);
  showSpeed(run);
  showAgent(run);
  showFaults(faults);
  showDifferences(found);
}

// ------------------------------------------------------------------------------------- the runs

function showRuns() {
  const { runs, groups, hidden } = page.overview;
  byId("runs-count").textContent = hidden ? `${runs.length} of ${runs.length + hidden}` : runs.length;
  byId("filter").hidden = runs.length <= MOST_GROUPS_AT_FIRST;
  const wanted = byId("filter").value.toLowerCase();
  const active = document.activeElement && document.activeElement.dataset.key;
  const parts = [...groups].reverse().map(({ group, label }) => {
    const members = runs.filter((run) => run.group === group && run.name.toLowerCase().includes(wanted));
    if (!members.length) return null;
    const box = make("input", { type: "checkbox", checked: !page.hidden.get(group) });
    box.dataset.key = `group ${group}`;
    box.addEventListener("change", () => {
      page.hidden.set(group, !box.checked);
      showKeys();
      page.charts.forEach((chart) => chart.load());
    });
    const head = make("label", { title: "Show in the charts" }, box, make("span", { textContent: label }));
    head.style.setProperty("--colour", colourOf(group));
    return make("div", { className: "group", role: "group", "aria-label": label }, head, ...members.map(runButton));
  });
  byId("runs").replaceChildren(...parts.filter(Boolean));
  showKeys();
  if (active) {
    const again = [...byId("runs").querySelectorAll("[data-key]")].find((each) => each.dataset.key === active);
    if (again) again.focus();
  }
}

/** Say which colour is which where the runs are folded away. */
function showKeys() {
  const shown = page.overview.groups.filter(({ group }) => !page.hidden.get(group)).reverse();
  byId("keys").replaceChildren(...shown.map(({ group, label }) =>
    make("span", {}, swatch(colourOf(group)), label)));
}

function runButton(run) {
  const done = run.total_steps ? Math.min(1, run.steps / run.total_steps) : 0;
  const facts = run.problem || [
    run.state === "running" ? percent(done) : run.state,
    `return ${number(run.evaluation ?? run.return_mean)}`,
    run.state === "running" ? `${number(run.fps)} steps/s` : duration(run.wall_s),
  ].join(" · ");
  const button = make("button", { type: "button", className: `run ${run.state}`, title: run.name },
    make("span", { className: "name" }, make("span", { className: "dot" }), make("span", { textContent: run.name })),
    sparkline(run.trend, colourOf(run.group)),
    make("span", { className: "facts", textContent: facts }));
  button.dataset.key = `run ${run.name}`;
  button.setAttribute("aria-current", run.name === page.focus);
  button.addEventListener("click", () => {
    page.focus = run.name;
    showRuns();
    showDetails().catch(() => {});
  });
  return button;
}

function sparkline(values, colour) {
  const low = Math.min(...values), high = Math.max(...values), range = high - low || 1;
  const points = values.map((value, index) =>
    `${(56 * index / Math.max(1, values.length - 1)).toFixed(1)},${(20 - 18 * (value - low) / range).toFixed(1)}`);
  const line = svg("polyline", { points: points.join(" "), fill: "none", "stroke-width": 1.5 });
  line.style.stroke = colour;
  return svg("svg", { viewBox: "0 0 56 22", "aria-hidden": "true" }, line);
}

// ------------------------------------------------------------------------------------- one run

function showFocus(run) {
  const done = run.total_steps ? Math.min(1, run.steps / run.total_steps) : 0;
  const bar = make("div");
  bar.style.width = `${100 * done}%`;
  const left = run.fps ? Math.max(0, run.total_steps - run.steps) / run.fps : null;
  const facts = [
    ["Steps", number(run.steps), `of ${number(run.total_steps)}`],
    ["Return", number(run.return_mean), "in training"],
    ["Evaluation", number(run.evaluation), ""],
    ["Speed", number(run.fps), "steps/s"],
    run.state === "running" ? ["Time left", duration(left), ""] : ["Time", duration(run.wall_s), ""],
  ];
  byId("focus").replaceChildren(
    make("div", { className: "head" },
      make("h2", { id: "focus-title", textContent: run.name }),
      make("span", { className: `state ${run.state}` }, make("span", { className: "dot" }), run.state)),
    make("div", {
      className: "progress", role: "progressbar", "aria-label": "Steps", "aria-valuemin": 0,
      "aria-valuemax": 100, "aria-valuenow": Math.round(100 * done),
    }, bar),
    make("dl", { className: "facts-row" }, ...facts.map(([name, value, unit]) =>
      make("div", {}, make("dt", { textContent: name }),
        make("dd", {}, value, " ", make("small", { textContent: unit }))))));
}

function showSpeed(run) {
  const parts = [make("h2", { id: "speed-title", textContent: "Where the time goes" })];
  if (run.fps && run.limit_fps) {
    const share = Math.min(1, run.fps / run.limit_fps);
    const bar = make("div");
    bar.style.width = percent(share).replace(" ", "");
    parts.push(
      make("p", { className: "speed-now" }, make("strong", { textContent: percent(share) }),
        ` of the limit: ${number(run.fps)} of ${number(run.limit_fps)} steps/s`),
      make("div", {
        className: "progress", role: "meter", "aria-label": "Speed against the limit", "aria-valuemin": 0,
        "aria-valuemax": 100, "aria-valuenow": Math.round(100 * share),
      }, bar));
  }
  const limits = run.limits_fps;
  if (limits.training) {
    const speeds = [
      ["Environment alone", limits.environment, "steps/s at most"],
      ["With policy", run.sampling_fps, `of ${number(limits.policy)} steps/s`],
      ["With training", run.fps, `of ${number(limits.training)} steps/s`],
    ];
    parts.push(make("dl", { className: "facts-row" }, ...speeds.map(([name, fps, remark]) =>
      make("div", {}, make("dt", { textContent: name }),
        make("dd", {}, fps ? number(fps) : "–", " ", make("small", { textContent: remark }))))));
  }
  const workers = Object.entries(run.workers);
  const rows = workers.length > MOST_WORKERS ? meansByKind(workers) : workers;
  const colours = run.activities.map((activity) => `var(--${activity})`);
  const { sampling, learning } = run.shares;
  const hasLearner = sampling !== null && learning !== null;
  if (rows.length || hasLearner) {
    const used = [...run.activities.map((activity, index) => [activity, colours[index]])];
    if (hasLearner) used.push(["learning", "var(--learning)"]);
    parts.push(make("p", { className: "legend" }, ...used.map(([name, colour]) =>
      make("span", {}, swatch(colour), name))));
  }
  for (const [name, shares] of rows) parts.push(workerBar(name, shares, run.activities, colours));
  if (hasLearner) {
    parts.push(workerBar("learner", [learning, sampling], ["learning", "waiting"],
      ["var(--learning)", "var(--waiting)"]));
  }
  if (!rows.length && !hasLearner) parts.push(make("p", { className: "muted", textContent: "No row of metrics yet." }));
  else {
    parts.push(make("p", { className: "note", textContent:
      "Since the row of metrics before the latest one. At the right is the share of time not spent waiting. " +
      "At the limit, every core would step, run the policy or learn all the time." }));
  }
  byId("speed").replaceChildren(...parts);
}

function meansByKind(workers) {
  const kinds = new Map();
  for (const [name, shares] of workers) {
    const kind = name.replace(/-\d+$/, "");
    kinds.set(kind, [...(kinds.get(kind) || []), shares]);
  }
  return [...kinds].map(([kind, found]) => [`${found.length} × ${kind}`,
    found[0].map((_, index) => found.reduce((sum, shares) => sum + shares[index], 0) / found.length)]);
}

function workerBar(name, shares, activities, colours) {
  const said = activities.map((activity, index) => `${activity} ${percent(shares[index])}`).join(", ");
  const stack = make("div", { className: "stack", role: "img", title: said, "aria-label": `${name}: ${said}` });
  shares.forEach((share, index) => {
    const part = make("div");
    part.style.setProperty("--colour", colours[index]);
    part.style.width = `${100 * share}%`;
    if (activities[index] !== "waiting") stack.append(part);
  });
  const waiting = activities.indexOf("waiting");
  const busy = shares.reduce((sum, share, index) => sum + (index === waiting ? 0 : share), 0);
  return make("div", { className: "worker" }, make("span", { textContent: name, title: name }), stack,
    make("span", { textContent: percent(Math.min(1, busy)) }));
}

function showAgent(run) {
  const section = byId("agent");
  const key = JSON.stringify([run.name, run.videos]);
  if (section.dataset.key === key) return;
  section.dataset.key = key;
  const title = make("h2", { id: "agent-title", textContent: "The agent" });
  if (!run.videos.length) {
    section.replaceChildren(title, make("p", { className: "muted" }, "No video yet. ",
      make("code", { textContent: `fastrl record ${run.name}` }), " makes one; ",
      make("code", { textContent: "evaluation.video=true" }), " one with each evaluation."));
    return;
  }
  const holder = make("div");
  const show = (name) => {
    const source = `/api/video?${new URLSearchParams({ run: run.name, name })}`;
    const said = `The policy of ${run.name} in its environment: ${name}`;
    holder.replaceChildren(name.endsWith(".gif")
      ? make("img", { src: source, alt: said })
      : make("video", { src: source, controls: true, loop: true, muted: true, autoplay: true, playsInline: true, "aria-label": said }));
  };
  show(run.videos[0]);
  const select = make("select", { "aria-label": "Video" }, ...run.videos.map((name) => make("option", { textContent: name })));
  select.addEventListener("change", () => show(select.value));
  section.replaceChildren(title, holder, run.videos.length > 1 ? select : make("p", { className: "note", textContent: run.videos[0] }));
}

// ------------------------------------------------------------------------------------ all runs

function showFaults({ total, faults }) {
  const box = byId("faults");
  if (!total) {
    box.replaceChildren(make("p", { className: "muted", textContent: "No worker has failed." }));
    return;
  }
  const open = new Set([...box.querySelectorAll("details[open]")].map((each) => each.dataset.key));
  const more = total > faults.length ? [make("p", { className: "muted", textContent: `The latest ${faults.length} of ${total}:` })] : [];
  box.replaceChildren(...more, ...faults.map((fault) => {
    const at = String(fault.at || "").replace("T", " ").slice(0, 19);
    const parts = [
      make("div", { className: "muted", textContent: `${at} · ${fault.run} · ${fault.worker}` }),
      make("div", { textContent: String(fault.cause) }),
    ];
    if (fault.remote_traceback) {
      const key = `${fault.run} ${fault.at}`;
      const details = make("details", { open: open.has(key) }, make("summary", { textContent: "Traceback" }),
        make("pre", { className: "mono", textContent: String(fault.remote_traceback) }));
      details.dataset.key = key;
      parts.push(details);
    }
    return make("div", { className: "fault" }, ...parts);
  }));
}

function showDifferences({ runs, keys }) {
  const box = byId("differences");
  if (!keys.length) {
    const text = runs.length > 1 ? "All runs have the same configuration." : "One run has nothing to be compared with.";
    box.replaceChildren(make("p", { className: "muted", textContent: text }));
    return;
  }
  const groupOf = new Map(page.overview.runs.map((run) => [run.name, run.group]));
  const head = make("tr", {}, make("th", { scope: "col", textContent: "run" }),
    ...keys.map(({ key }) => make("th", { scope: "col", textContent: key })));
  const rows = runs.map((name, index) => make("tr", {},
    make("th", { scope: "row", title: name }, swatch(colourOf(groupOf.get(name) || 0)), name),
    ...keys.map(({ values }) => make("td", { textContent: values[index] ?? "–", title: values[index] ?? "not set" }))));
  const before = box.querySelector(".scroll");
  const place = before ? [before.scrollLeft, before.scrollTop] : [0, 0];
  const scroll = make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-labelledby": "differences-title" },
    make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  box.replaceChildren(scroll);
  [scroll.scrollLeft, scroll.scrollTop] = place;
}

// -------------------------------------------------------------------------------------- charts

function beginCharts(metrics) {
  const has = (metric) => (metrics[kindOf(metric)] || []).includes(nameOf(metric));
  const wanted = (kept.charts || []).filter(has);
  const chosen = wanted.length ? wanted : FIRST_CHARTS.filter(has).slice(0, MOST_CHARTS_AT_FIRST);
  for (const metric of chosen.length ? chosen : ["training/return_mean"]) page.charts.push(new Chart(metric));
}

const kindOf = (metric) => metric.slice(0, metric.indexOf("/"));
const nameOf = (metric) => metric.slice(metric.indexOf("/") + 1);

class Chart {
  constructor(metric) {
    this.metric = metric;
    this.select = make("select", { "aria-label": "Metric" });
    this.latest = make("span", { className: "latest" });
    const close = make("button", { type: "button", className: "close", textContent: "×", "aria-label": "Remove this chart" });
    this.plot = make("div", { className: "plot", role: "img" });
    this.element = make("figure", { className: "card chart" },
      make("div", { className: "top" }, this.select, this.latest, close), this.plot);
    byId("charts").append(this.element);
    this.select.addEventListener("change", () => {
      this.metric = this.select.value;
      keep();
      this.load();
    });
    close.addEventListener("click", () => {
      page.charts = page.charts.filter((chart) => chart !== this);
      this.clear();
      this.element.remove();
      keep();
    });
    new ResizeObserver(() => {
      if (this.drawn) this.drawn.setSize({ width: this.plot.clientWidth, height: this.plot.clientHeight });
    }).observe(this.plot);
  }

  async load() {
    const shown = page.overview.groups.map(({ group }) => group).filter((group) => !page.hidden.get(group));
    const kind = kindOf(this.metric);
    // Evaluations do not say when they were made.
    const over = kind === "training" ? page.over : "steps";
    this.found = await ask("curves", { metric: nameOf(this.metric), kind, over, groups: shown.join(",") });
    this.over = over;
    this.draw();
  }

  clear() {
    if (this.drawn) this.drawn.destroy();
    this.drawn = null;
    this.plot.replaceChildren();
  }

  draw() {
    this.options();
    const { groups } = this.found;
    const labels = new Map(page.overview.groups.map(({ group, label }) => [group, label]));
    const latest = groups.map(({ group, mean }) => `${labels.get(group)} ${number(mean[mean.length - 1])}`);
    this.latest.textContent = groups.length === 1 ? number(groups[0].mean[groups[0].mean.length - 1]) : "";
    this.plot.setAttribute("aria-label", `${nameOf(this.metric)}: ${latest.join("; ") || "no values"}`);
    const tables = [], series = [{}], bands = [];
    this.shown = [];
    for (const { group, x, mean, spread, runs } of groups) {
      const colour = resolved(colourOf(group));
      const add = (table, settings) => {
        tables.push(table);
        series.push({ spanGaps: true, points: { show: false }, ...settings });
      };
      if (byId("seeds").checked) {
        for (const run of runs) add([run.x, run.y], { stroke: faded(colour, 0.3), width: 1 });
      }
      if (spread.length) {
        const edge = { stroke: "transparent", width: 0 };
        add([x, mean.map((value, index) => value + spread[index])], edge);
        add([x, mean.map((value, index) => value - spread[index])], edge);
        bands.push({ series: [series.length - 2, series.length - 1], fill: faded(colour, 0.16) });
      }
      add([x, mean], { stroke: colour, width: 2, points: { show: x.length <= FEW_POINTS, size: 6, fill: colour } });
      this.shown.push({ index: series.length - 1, group, label: labels.get(group), spread, x });
    }
    const key = JSON.stringify([this.metric, this.over, series.map((each) => [each.stroke, each.points]), page.theme]);
    if (!tables.length) {
      this.clear();
      this.plot.append(make("p", { className: "none", textContent: "No values yet" }));
      this.key = "";
      return;
    }
    const data = uPlot.join(tables.map(([x, y]) => [x, y]));
    if (key === this.key && this.drawn) this.drawn.setData(data, !this.zoomed);
    else this.build(data, series, bands);
    this.key = key;
  }

  build(data, series, bands) {
    this.clear();
    this.zoomed = false;
    const muted = resolved("var(--muted)"), grid = resolved("var(--grid)");
    const font = '11px system-ui, -apple-system, "Segoe UI", sans-serif';
    const axis = { stroke: muted, font, grid: { stroke: grid, width: 1 }, ticks: { show: false } };
    const inX = this.over === "steps" ? number : duration;
    this.drawn = new uPlot({
      width: this.plot.clientWidth, height: this.plot.clientHeight,
      legend: { show: false },
      cursor: { y: false, sync: { key: this.over }, points: { show: false }, drag: { x: true, y: false } },
      scales: { x: { time: false } },
      axes: [
        { ...axis, size: 26, gap: 4, space: 70, values: (_, splits) => splits.map(inX) },
        { ...axis, size: 48, gap: 4, space: 34, values: (_, splits) => splits.map(number) },
      ],
      series, bands,
      hooks: {
        setSelect: [() => { this.zoomed = true; }],
        setCursor: [(plot) => this.tip(plot)],
      },
    }, data, this.plot);
    this.drawn.over.addEventListener("dblclick", () => { this.zoomed = false; });
  }

  /** Show the values at the cursor beside it. */
  tip(plot) {
    if (this.box) this.box.remove();
    this.box = null;
    const { left, idx } = plot.cursor;
    if (idx === null || idx === undefined || left < 0) return;
    // Only in the chart under the pointer; the others show the line.
    if (!this.element.matches(":hover")) return;
    const at = plot.posToVal(left, "x");
    const rows = this.shown.map(({ index, group, label }) => ({ group, label, value: nearest(plot.data, index, idx) }))
      .filter(({ value }) => value !== null).sort((one, other) => other.value - one.value);
    if (!rows.length) return;
    this.box = make("div", { className: "tip" },
      make("div", { className: "muted", textContent: this.over === "steps" ? `${number(at)} steps` : duration(at) }),
      ...rows.slice(0, 12).map(({ group, label, value }) =>
        make("div", {}, swatch(colourOf(group)), make("span", { textContent: label }), make("strong", { textContent: number(value) }))));
    this.element.append(this.box);
    const room = this.element.clientWidth - this.box.offsetWidth - 8;
    const x = plot.over.getBoundingClientRect().left - this.element.getBoundingClientRect().left + left;
    this.box.style.left = `${Math.max(4, Math.min(x + 14, room))}px`;
    this.box.style.top = "44px";
  }

  /** List all metrics of the runs, by kind of row. */
  options() {
    const { metrics } = page.overview;
    const key = JSON.stringify([metrics, this.metric]);
    if (this.select.dataset.key === key) return;
    this.select.dataset.key = key;
    const kinds = ["training", "evaluation", ...Object.keys(metrics).filter((kind) => kind !== "training" && kind !== "evaluation")];
    this.select.replaceChildren(...kinds.filter((kind) => metrics[kind]).map((kind) =>
      make("optgroup", { label: kind.replace("_", " ") }, ...metrics[kind].map((name) =>
        make("option", { value: `${kind}/${name}`, textContent: kind === "training" ? name : `${name} (${kind.replace("_", " ")})` })))));
    this.select.value = this.metric;
  }
}

/** The value of a series at a row, or the nearest one before or after it. */
function nearest(data, series, index) {
  const values = data[series];
  for (let away = 0; away < values.length; away++) {
    for (const at of [index - away, index + away]) {
      if (values[at] !== null && values[at] !== undefined) return values[at];
    }
  }
  return null;
}

// --------------------------------------------------------------------------------- the controls

function showTheme() {
  const [name, path] = THEMES[page.theme];
  if (page.theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = page.theme;
  byId("theme").setAttribute("aria-label", `Colours: ${name}`);
  byId("theme").title = `Colours: ${name}`;
  byId("theme").replaceChildren(svg("svg", { viewBox: "0 0 16 16", width: 16, height: 16, fill: "currentColor", "aria-hidden": "true" }, svg("path", { d: path })));
  redraw();
}

function redraw() {
  for (const chart of page.charts) {
    chart.key = "";
    if (chart.found) chart.draw();
  }
}

byId("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  page.theme = names[(names.indexOf(page.theme) + 1) % names.length];
  keep();
  showTheme();
});
byId("filter").addEventListener("input", showRuns);
byId("seeds").addEventListener("change", redraw);
byId("add").addEventListener("click", () => {
  const { metrics } = page.overview;
  const shown = new Set(page.charts.map((chart) => chart.metric));
  const all = Object.entries(metrics).flatMap(([kind, names]) => names.map((name) => `${kind}/${name}`));
  const chart = new Chart(all.find((metric) => !shown.has(metric)) || all[0]);
  page.charts.push(chart);
  keep();
  chart.load().then(() => chart.select.focus());
});
for (const choice of document.querySelectorAll("input[name=over]")) {
  choice.addEventListener("change", () => {
    page.over = choice.value;
    page.charts.forEach((chart) => chart.load());
  });
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) refresh(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
if (matchMedia("(max-width: 900px)").matches) byId("runs-box").open = false;
showTheme();
refresh();
