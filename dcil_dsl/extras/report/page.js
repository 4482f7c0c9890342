"use strict";
// The charts of a report. Observable Plot draws them; the data are in the page.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const many = data.runs.length > 1;
  const colors = ["#2563eb", "#d97706", "#059669", "#c026d3", "#dc2626", "#0891b2", "#65a30d", "#7c3aed"];
  const percent = (d) => d3.format(Math.abs(d) < 0.001 && d ? ".2%" : Math.abs(d) < 0.1 ? ".1~%" : ".0%")(d);
  let axis = "step";
  const xLabel = () => axis === "step" ? "step" : "cost, in dense training steps";
  const dashes = ["", "6,3", "2,3", "8,3,2,3"];

  const lines = (points, label, format) => (width) => {
    const usable = points.filter((d) => d.value !== null);
    const series = [...new Set(points.map((d) => d.series))];
    const stroke = many ? "run" : "series";
    const key = (d) => d.run + "\u0000" + d.series;
    const marks = [];
    series.forEach((name, i) => {
      const part = usable.filter((d) => d.series === name);
      marks.push(Plot.lineY(part, {x: axis, y: "value", z: key, stroke, strokeWidth: 2,
        strokeDasharray: many ? dashes[i % dashes.length] : name === "asked" ? dashes[1] : ""}));
    });
    if (usable.length <= 200) marks.push(Plot.dot(usable, {x: axis, y: "value", fill: stroke, r: 2.5}));
    marks.push(Plot.tip(usable, Plot.pointer({x: axis, y: "value",
      title: (d) => `${many ? d.run + "\n" : ""}${d.series}: ${format(d.value)}` +
        `${d.count === undefined ? "" : ` (${d3.format(",")(d.count)})`}\n${xLabel()} ${d3.format(",.6~r")(d[axis])}`})));
    return Plot.plot({width, height: width < 500 ? 220 : 260, marginLeft: 56,
      x: {label: xLabel(), ticks: width < 500 ? 4 : 8, tickFormat: d3.format(",~r")},
      y: {label, grid: true, tickFormat: format, ticks: 5},
      caption: many && series.length > 1 ? series.map((name, i) =>
        `${name} ${["solid", "dashed", "dotted", "dash-dotted"][i % dashes.length]}`).join(", ") : undefined,
      color: {legend: true, domain: many ? data.runs : series, range: colors}, marks});
  };

  const number = d3.format(".4~g");
  const charts = {
    metric: lines(data.metrics, data.metric, data.share ? percent : number),
    loss: lines(data.losses, "loss", number),
    sparsity: lines(data.sparsity, "sparsity", percent),
    flips: lines(data.flips, "share of the weights under rules", percent),
    layers: (width) => Plot.plot({width, marginLeft: Math.min(width * 0.4, 230),
      height: 40 + data.order.length * (many ? 12 * data.runs.length + 8 : 20),
      x: {label: "weights that are not zero", domain: [0, 1], tickFormat: percent, grid: true, axis: "top",
        ticks: width < 500 ? 3 : 6},
      y: many ? {axis: null, domain: data.runs} : {label: null, domain: data.order,
        tickFormat: shorten(width)},
      fy: many ? {label: null, domain: data.order, axis: "left", tickFormat: shorten(width)} : undefined,
      color: {domain: data.runs, range: colors, legend: many},
      marks: [
        Plot.barX(data.layers, {x: "value", y: many ? "run" : "layer", fy: many ? "layer" : undefined,
          fill: many ? "run" : colors[0], tip: {format: {x: percent, fy: false, y: false, fill: false}},
          channels: {layer: "layer", run: "run", weights: {value: "weights", label: "weights"}}}),
        Plot.ruleX([0]),
      ]}),
    histogram: (width) => Plot.plot({width, height: 260, marginLeft: 56,
      x: {label: "weight, in multiples of its layer's mean size of a kept weight", ticks: width < 500 ? 5 : 9},
      y: {label: "weights", grid: true, tickFormat: d3.format(".2~s")},
      fx: many ? {label: null, domain: data.runs} : undefined,
      color: {legend: true, domain: ["kept", "pruned"], range: [colors[0], colors[1]]},
      marks: [
        Plot.rectY(data.histogram, {x1: "from", x2: "to", y: "count", fx: many ? "run" : undefined,
          fill: "series", fillOpacity: 0.75, tip: true}),
        Plot.ruleY([0]),
      ]}),
    sensitivity: (width) => Plot.plot({width, height: 300, marginLeft: 56, marginRight: width < 500 ? 10 : 30,
      x: {label: "sparsity of the layer alone", tickFormat: percent},
      y: {label: "loss, less the unpruned network's", grid: true},
      marks: [
        Plot.lineY(data.sensitivity.filter((d) => d.value !== null),
          {x: "level", y: "value", z: (d) => d.run + d.layer, stroke: colors[0], strokeOpacity: 0.6}),
        Plot.tip(data.sensitivity.filter((d) => d.value !== null), Plot.pointer({x: "level", y: "value",
          title: (d) => `${d.layer}\n${percent(d.level)}: ${number(d.value)}`})),
      ]}),
  };

  function shorten(width) {
    const most = Math.floor(Math.min(width * 0.4, 230) / 7);
    return (d) => d.length <= most ? d : d.slice(0, most / 2 - 1) + ".." + d.slice(1 - most / 2);
  }

  function draw(figure, width) {
    const at = figure.querySelector(".chart");
    if (figure.dataset.width === `${width} ${axis}`) return;
    figure.dataset.width = `${width} ${axis}`;
    at.replaceChildren(charts[figure.dataset.chart](width));
    figure.dataset.drawn = "yes";
  }

  const figures = [...document.querySelectorAll("figure[data-chart]")];
  const drawAll = (width) => figures.forEach((figure) =>
    draw(figure, width ?? Math.max(260, Math.floor(figure.clientWidth))));
  drawAll();
  let timer;
  addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(() => drawAll(), 100); });
  const closed = () => [...document.querySelectorAll("details:not([open])")];
  let opened = [];
  addEventListener("beforeprint", () => { opened = closed(); opened.forEach((d) => d.open = true); drawAll(660); });
  addEventListener("afterprint", () => { opened.forEach((d) => d.open = false); drawAll(); });
  document.querySelectorAll("input[name=axis]").forEach((input) => input.addEventListener("change", () => {
    axis = input.value;
    drawAll();
  }));
})();
