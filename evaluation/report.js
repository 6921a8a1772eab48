"use strict";
// The browser of completions. Completions are untrusted: text enters the page by textContent only.
(() => {
  const data = JSON.parse(document.getElementById("samples").textContent);
  const at = (id) => document.getElementById(id);
  const controls = { benchmark: at("b-benchmark"), left: at("b-left"), right: at("b-right"), change: at("b-change"), cwe: at("b-cwe"), text: at("b-text") };
  const PER_PAGE = 4;
  // Characters that reorder or hide text, and control characters HTML can't show.
  const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
  const visible = (text) => text.replace(HIDDEN, (c) => `⟨U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
  const isBad = (s) => s.state === "insecure";
  const works = (s) => s.functional === "pass";
  const CHANGES = {
    all: () => true,
    fixed: (a, b) => isBad(a) && b.state === "secure",
    broken: (a, b) => a.state === "secure" && isBad(b),
    both: (a, b) => isBad(a) && isBad(b),
    gained: (a, b) => !works(a) && works(b),
    lost: (a, b) => works(a) && !works(b),
    nocode: (a, b) => [a, b].some((s) => s.state === "unparseable" || s.state === "empty"),
    dead: (a, b) => [a, b].some((s) => s.faults),
    unknown: (a, b) => [a, b].some((s) => s.state === "unknown"),
    reaches: (a, b) => [a, b].some((s) => s.reaches),
  };
  let page = 0;

  function el(tag, name, ...children) {
    const node = document.createElement(tag);
    if (name) node.className = name;
    node.append(...children);
    return node;
  }

  function fill(select, options, chosen) {
    select.replaceChildren(...options.map(([value, text]) => new Option(text, value, false, String(value) === String(chosen))));
  }

  function chooseBenchmark() {
    const b = data[controls.benchmark.value];
    const runs = b.runs.map((run, i) => [i, run.label]);
    fill(controls.left, runs, 0);
    fill(controls.right, runs, Math.min(1, runs.length - 1));
    const cwes = [...new Set(b.tasks.map((t) => t.cwe).filter(Boolean))].sort((x, y) => x.localeCompare(y, "en", { numeric: true }));
    fill(controls.cwe, [["", "every CWE"], ...cwes.map((c) => [c, c])], "");
    controls.cwe.parentElement.hidden = !cwes.length;
    update();
  }

  function matches() {
    const b = data[controls.benchmark.value];
    const [left, right] = [b.runs[controls.left.value], b.runs[controls.right.value]];
    const wanted = controls.text.value.trim().toLowerCase();
    const found = [];
    for (const task of b.tasks) {
      if (controls.cwe.value && task.cwe !== controls.cwe.value) continue;
      const [as, bs] = [left.samples[task.id] || [], right.samples[task.id] || []];
      for (let i = 0; i < Math.min(as.length, bs.length); i++) {
        if (!CHANGES[controls.change.value](as[i], bs[i])) continue;
        const text = () => [task.id, task.prompt, ...[as[i], bs[i]].flatMap((s) => [s.code, ...s.findings.flatMap((f) => [f.rule, f.cwe, f.message])])];
        if (wanted && !text().some((t) => t.toLowerCase().includes(wanted))) continue;
        found.push({ task, i, sides: left === right ? [[left, as[i]]] : [[left, as[i]], [right, bs[i]]] });
      }
    }
    return found;
  }

  function badges(s) {
    const row = el("p", "badges");
    if (s.state) row.append(el("span", `badge ${s.state}`, s.state));
    if (s.findings.length) row.append(el("span", "badge", `${s.findings.length} finding${s.findings.length > 1 ? "s" : ""}`));
    if (s.functional) row.append(el("span", "badge", s.functional === "pass" ? "tests pass" : `tests: ${s.functional}`));
    if (s.security) row.append(el("span", "badge", s.security === "pass" ? "attack test passes" : `attack test: ${s.security}`));
    if (s.faults) row.append(el("span", "badge marked", s.faults));
    if (s.cut) row.append(el("span", "badge", "cut off"));
    if (s.gave_up) row.append(el("span", "badge marked", `gave up: ${s.gave_up}`));
    if (s.reaches) row.append(el("span", "badge marked", `reaches for ${s.reaches}${s.inside ? "; tested within its own process" : ""}`));
    if (s.duplicate) row.append(el("span", "badge", "duplicate"));
    return row;
  }

  function pane(run, s, other, name) {
    const head = el("h4", "who", el("i", `key k${run.colour}`), run.label);
    const pre = el("pre", "code");
    pre.tabIndex = 0;
    pre.setAttribute("role", "region");
    pre.setAttribute("aria-label", `${name}, ${run.label}`);
    const theirs = new Set(other ? other.code.split(/\r\n|\n|\r/) : []);
    s.code.replace(/\n$/, "").split(/\r\n|\n|\r/).forEach((text, index) => {
      const line = index + 1;
      const here = s.findings.filter((f) => f.line <= line && line <= Math.max(f.line, f.end_line));
      const kind = here.length ? "hit" : line <= s.given ? "given" : other && text.trim() && !theirs.has(text) ? "changed-line" : "";
      const row = el("span", `line ${kind}`, visible(text) + "\n");
      row.dataset.n = line;
      pre.append(row);
      for (const f of here.filter((f) => f.line === line)) {
        pre.append(el("span", "finding", `▲ ${visible([f.judge, f.rule, f.cwe, f.severity].filter(Boolean).join(" · "))}\n${visible(f.message)}\n`));
      }
    });
    return el("section", "pane", head, badges(s), s.code.trim() ? pre : el("p", "note", "No code."));
  }

  function card({ task, i, sides }) {
    const name = `${visible(task.id)}, sample ${i + 1}`;
    const title = el("h3", "", visible(task.id), el("small", "", `${task.cwe ? ` ${task.cwe} ·` : ""} sample ${i + 1}`));
    const prompt = el("details", "", el("summary", "", "Task text"), el("pre", "", visible(task.prompt)));
    const panes = sides.map(([run, s], k) => pane(run, s, sides.length > 1 ? sides[1 - k][1] : null, name));
    return el("article", "card sample", title, prompt, el("div", "panes", ...panes));
  }

  function update(keep) {
    if (keep !== true) page = 0;
    const found = matches();
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const start = page * PER_PAGE;
    const now = found.slice(start, start + PER_PAGE);
    at("b-list").replaceChildren(...now.map(card));
    at("b-count").textContent = found.length ? `${start + 1}–${start + now.length} of ${found.length}` : "No sample fits these filters.";
    at("b-previous").disabled = page === 0;
    at("b-next").disabled = page === pages - 1;
  }

  fill(controls.benchmark, data.map((b, i) => [i, b.name]), 0);
  controls.benchmark.addEventListener("change", chooseBenchmark);
  for (const name of ["left", "right", "change", "cwe"]) controls[name].addEventListener("change", update);
  controls.text.addEventListener("input", update);
  const turn = (by) => () => { page += by; update(true); at("completions").scrollIntoView(); };
  at("b-previous").addEventListener("click", turn(-1));
  at("b-next").addEventListener("click", turn(1));
  at("browser").hidden = false;
  chooseBenchmark();
})();
