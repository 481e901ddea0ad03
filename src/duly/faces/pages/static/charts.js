// uPlot over what the page already has; without scripts a still picture stands in its place.
(() => {
  "use strict";
  const ink = (name) => {
    const probe = document.createElement("i"); probe.className = name; probe.hidden = true;
    document.body.append(probe);
    const style = getComputedStyle(probe), colour = style.backgroundColor;
    const found = colour === "rgba(0, 0, 0, 0)" ? style.color : colour;
    probe.remove(); return found;
  };
  const charts = [];
  for (const place of document.querySelectorAll("[data-plot]")) {
    const points = JSON.parse(place.dataset.points), names = JSON.parse(place.dataset.names);
    const axis = { stroke: ink("dim"), grid: { stroke: ink("chart-grid"), width: 1 }, ticks: { show: false } };
    const forecast = place.dataset.plot === "forecast";
    const start = forecast ? Date.parse(place.dataset.start) / 1000 : 0;
    const data = forecast
      ? [points.map((_, minute) => start + minute * 60), points]
      : [points.p99.map((_, minute) => (points.start + minute) * 60), points.p99];
    const series = [{ label: "at (UTC)", value: (_, v) => v == null ? "–" : new Date(v * 1000).toISOString().slice(0, 16).replace("T", " ") }];
    if (forecast) {
      series.push({ label: names[0], stroke: ink("l2"), fill: ink("l1"), width: 1, paths: uPlot.paths.stepped({ align: 1 }), points: { show: false } });
      const capacity = Number(place.dataset.capacity);
      if (place.dataset.capacity) { data.push(points.map(() => capacity)); series.push({ label: names[1], stroke: ink("l4"), dash: [6, 4], width: 1.5, points: { show: false } }); }
    } else {
      series.push({ label: names[0], stroke: ink("l2"), width: 1.5, scale: "y", spanGaps: true, points: { show: data[0].length < 90, size: 4 } });
    }
    const scales = { x: { time: true }, y: place.dataset.log ? { distr: 3 } : { range: (_, low, high) => [0, Math.max(1, high) * 1.05] } };
    const clock = (_, ticks) => ticks.map((at) => new Date(at * 1000).toISOString().slice(11, 16));
    const axes = [{ ...axis, values: clock }, { ...axis, size: 60, values: forecast ? undefined : (_, ticks) => ticks.map((tick) => tick == null ? "" : tick >= 1000 ? `${tick / 1000} s` : `${tick} ms`) }];
    if (!data[0].length) { place.textContent = "No run yet."; place.classList.add("empty"); continue; }
    const chart = new uPlot({ width: place.clientWidth, height: 240, tzDate: (at) => uPlot.tzDate(new Date(at * 1000), "Etc/UTC"), series, scales, axes, cursor: { drag: { x: true, y: false } } }, data, place);
    charts.push([chart, place]);
  }
  addEventListener("resize", () => { for (const [chart, place] of charts) chart.setSize({ width: place.clientWidth, height: 240 }); });
})();
