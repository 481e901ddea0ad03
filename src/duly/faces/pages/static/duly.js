// What pages gain by scripts; all of them work without. Comes before htmx, to hear its first connection. No text of anybody's is ever put in as markup here.
(() => {
  "use strict";
  const $ = (selector, within = document) => within.querySelector(selector);
  const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];

  // -- times: "in 20 s" stays true; the viewer's own time is in the title ---------------------------------------
  const words = (seconds) => {
    const s = Math.abs(seconds);
    if (s < 1) return "now";
    const text = s < 10 ? `${s.toFixed(1)} s` : s < 120 ? `${Math.round(s)} s`
      : s < 3600 ? `${Math.floor(s / 60)} min` : s < 172800 ? `${Math.floor(s / 3600)} h ${Math.floor(s % 3600 / 60)} min`
      : `${Math.floor(s / 86400)} d`;
    return seconds >= 0 ? `in ${text}` : `${text} ago`;
  };
  const local = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "long" });
  const tick = () => {
    if (document.hidden) return;
    for (const time of $$("time.ago")) {
      const text = words((Date.parse(time.dateTime) - Date.now()) / 1000);
      if (time.textContent !== text) time.textContent = text;
    }
    for (const time of $$("time:not([data-local])")) {
      time.dataset.local = "";
      time.title = `${time.dateTime}\n${local.format(Date.parse(time.dateTime))} here`;
    }
  };
  setInterval(tick, 1000);
  const zone = $("[data-zone]");
  if (zone) { zone.textContent = `; here it is ${Intl.DateTimeFormat().resolvedOptions().timeZone}`; zone.hidden = false; }
  for (const field of $$("input[name=viewer_zone]")) field.value = Intl.DateTimeFormat().resolvedOptions().timeZone;

  // -- the event stream: say whether the page is live ---------------------------------------------------------
  const pulse = $("[data-live]");
  const tell = (state, text) => { if (pulse && pulse.dataset.live !== state) { pulse.dataset.live = state; pulse.lastElementChild.textContent = text; } };
  document.addEventListener("htmx:sse:after:connection", () => tell("on", "live"));
  document.addEventListener("htmx:sse:error", () => tell("off", "not connected"));
  document.addEventListener("htmx:sse:close", () => tell("off", "not connected"));
  document.addEventListener("visibilitychange", () => { if (document.hidden) tell("paused", "paused"); });
  document.addEventListener("gone", () => { if (pulse) location.reload(); });
  document.addEventListener("htmx:sse:after:message", () => { tick(); follow(); });

  // -- the heat strip: what a cell is, and its runs on a click ------------------------------------------------
  let tip;
  const cellOf = (svg, event) => {
    const box = svg.getBoundingClientRect();
    const minutes = Number(svg.dataset.minutes);
    const minute = Math.min(minutes - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * minutes)));
    return new Date(Date.parse(svg.dataset.strip) + minute * 60000);
  };
  document.addEventListener("pointermove", (event) => {
    const svg = event.target.closest?.("svg[data-strip]");
    if (!svg) { tip?.remove(); tip = null; return; }
    if (!tip) { tip = document.createElement("div"); tip.className = "tip"; document.body.append(tip); }
    tip.textContent = `${cellOf(svg, event).toISOString().slice(11, 16)} UTC${svg.dataset.job ? " · click for its runs" : ""}`;
    tip.style.left = `${Math.min(event.clientX + 12, innerWidth - 170)}px`;
    tip.style.top = `${event.clientY + 14}px`;
  });
  document.addEventListener("click", (event) => {
    const svg = event.target.closest?.("svg[data-job]");
    if (!svg) return;
    const from = cellOf(svg, event), until = new Date(from.getTime() + 60000);
    const query = new URLSearchParams({ job_id: svg.dataset.job, since: from.toISOString(), until: until.toISOString() });
    location.href = `/runs?${query}`;
  });

  // -- the job list: mark all, count, complete the filter ------------------------------------------------------
  const marks = () => $$("input[name=ids]");
  const counted = () => {
    const count = marks().filter((box) => box.checked).length;
    for (const out of $$("[data-marked]")) out.textContent = count ? `${count} marked` : "mark jobs, or act on all that the filter finds";
  };
  document.addEventListener("change", (event) => {
    if (event.target.matches?.("[data-all]")) for (const box of marks()) box.checked = event.target.checked;
    if (event.target.matches?.("[data-all], input[name=ids]")) counted();
  });
  for (const label of $$("[data-all-label]")) label.hidden = false;
  if (marks().length) counted();
  const filter = $("input[data-complete]");
  if (filter) {
    const known = JSON.parse(filter.dataset.complete), list = $("#" + filter.getAttribute("list"));
    const offer = () => {
      const cut = filter.value.lastIndexOf(" ") + 1, head = filter.value.slice(0, cut), last = filter.value.slice(cut);
      list.replaceChildren(...known.filter((word) => word.startsWith(last) && word !== last).slice(0, 12).map((word) => {
        const option = document.createElement("option"); option.value = head + word; return option;
      }));
    };
    filter.addEventListener("input", offer); filter.addEventListener("focus", offer);
  }
  const views = $("[data-views]");
  if (views) {
    const kept = () => { try { return JSON.parse(localStorage.getItem("duly.views") || "[]"); } catch { return []; } };
    const show = () => {
      views.replaceChildren(...kept().map((view) => {
        const item = document.createElement("span"), link = document.createElement("a"), drop = document.createElement("button");
        item.className = "tag"; link.href = "/jobs?" + view.query; link.textContent = view.name;
        drop.type = "button"; drop.className = "quiet"; drop.textContent = "×"; drop.setAttribute("aria-label", `forget the view ${view.name}`);
        drop.addEventListener("click", () => { localStorage.setItem("duly.views", JSON.stringify(kept().filter((each) => each.name !== view.name))); show(); });
        item.append(link, drop); return item;
      }));
    };
    const keep = $("[data-keep-view]");
    keep.hidden = false;
    keep.addEventListener("click", () => {
      const name = filter.value.trim() || "all jobs";
      localStorage.setItem("duly.views", JSON.stringify([...kept().filter((each) => each.name !== name), { name, query: location.search.slice(1) }].slice(-12)));
      show();
    });
    show();
  }

  // -- logs: follow, search -----------------------------------------------------------------------------------
  const follow = () => {
    const box = $("[data-follow]"), log = $("#log pre");
    if (log && box?.checked) log.scrollTop = log.scrollHeight;
  };
  follow();
  document.addEventListener("change", (event) => { if (event.target.matches?.("[data-follow]")) follow(); });

  // -- forms: quick schedules, copying ------------------------------------------------------------------------
  document.addEventListener("click", (event) => {
    const set = event.target.closest?.("[data-set]");
    if (set) {
      const field = document.getElementById(set.dataset.for);
      field.value = set.dataset.set; field.dispatchEvent(new Event("input", { bubbles: true })); field.focus();
    }
    const copy = event.target.closest?.("[data-copy]");
    if (copy) navigator.clipboard?.writeText(document.getElementById(copy.dataset.copy).textContent).then(() => { copy.textContent = "copied"; });
  });
  for (const box of $$("[data-copy]")) box.hidden = !navigator.clipboard;
  const kinds = $$("input[name=kind]");
  const shown = () => { for (const part of $$("[data-kind]")) part.hidden = !kinds.some((kind) => kind.checked && kind.value === part.dataset.kind); };
  for (const kind of kinds) kind.addEventListener("change", shown);
  if (kinds.length) shown();

  // -- the timeline: wheel zooms about the pointer -------------------------------------------------------------
  const gantt = $("[data-gantt]");
  if (gantt) gantt.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const link = $(event.deltaY < 0 ? "[data-zoom=in]" : "[data-zoom=out]");
    if (link && !gantt.dataset.going) { gantt.dataset.going = "1"; location.href = link.href; }
  }, { passive: false });

  // -- keys ----------------------------------------------------------------------------------------------------
  const places = { h: "/", j: "/jobs", r: "/runs", t: "/timeline", l: "/lateness", f: "/failures", n: "/forecast", c: "/cluster" };
  let waiting = 0;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select, textarea, dialog")) return;
    if (waiting && Date.now() - waiting < 1200 && places[event.key]) { waiting = 0; location.href = places[event.key]; return; }
    waiting = event.key === "g" ? Date.now() : 0;
    if (event.key === "/") { const field = $("[data-search]"); if (field) { event.preventDefault(); field.focus(); field.select(); } }
    if (event.key === "?") $("#keys").showModal();
  });
  tick();
})();
