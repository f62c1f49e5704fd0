// A small chart: points with error bars, joined by a line. Drawn by uPlot on a canvas, so `label` says in words
// what it shows, and the numbers stand beside it in a table.
import { html } from "../html.js";
import { useEffect, useRef } from "../vendor/preact-hooks.js";

const HEIGHT = 210;

/** `points`: `{ x, y, error }`. `lines`: `{ y, text }` drawn across. `include`: values that the y axis shows. */
export function Chart({ label, points, lines = [], include = [], yText, xText }) {
  const place = useRef();
  useEffect(() => {
    const element = place.current;
    let chart = null;
    let isGone = false;
    const draw = async () => {
      const { default: UPlot } = await import("../vendor/uplot.js");
      if (isGone) return;
      chart?.destroy();
      const width = element.clientWidth;
      chart = new UPlot(options({ points, lines, include, yText, xText, width, place: element }), columns(points), element);
    };
    const resized = new ResizeObserver(() => chart?.setSize({ width: element.clientWidth, height: HEIGHT }));
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", draw);
    resized.observe(element);
    draw();
    return () => {
      isGone = true;
      scheme.removeEventListener("change", draw);
      resized.disconnect();
      chart?.destroy();
    };
  }, [points]);
  return html`<div class="chart" role="img" aria-label=${label} ref=${place}></div>`;
}

const columns = (points) => [points.map(({ x }) => x), points.map(({ y }) => y)];

function options({ points, lines, include, yText, xText, width, place }) {
  const style = getComputedStyle(place);
  const colour = (name) => resolved(place, style.getPropertyValue(name));
  const axis = { stroke: colour("--ink-soft"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: `12px ${style.fontFamily}`, labelFont: `12px ${style.fontFamily}`, labelSize: 18 };
  return {
    width,
    height: HEIGHT,
    legend: { show: false },
    cursor: { show: false },
    padding: [10, 12, 0, 0],
    scales: { x: { time: false, range: paddedX }, y: { range: (_, low, high) => paddedY(low, high, points, include) } },
    axes: [
      { ...axis, label: xText, size: 26, splits: () => points.map(({ x }) => x), values: (_, xs) => xs.map(tick) },
      { ...axis, label: yText, size: 48 },
    ],
    series: [{}, { stroke: colour("--accent"), width: 2, points: { show: true, size: 8, fill: colour("--accent") } }],
    hooks: { draw: [(chart) => drawErrors(chart, points, colour("--accent")), (chart) => drawLines(chart, lines, colour)] },
  };
}

const tick = (x) => (x > 0 ? `+${x}` : x < 0 ? `−${-x}` : "0");

const paddedX = (_, low, high) => [low - 0.15, high + 0.15];

function paddedY(low, high, points, include) {
  const ends = points.flatMap(({ y, error }) => [y - (error ?? 0), y + (error ?? 0)]).filter(Number.isFinite);
  const lowest = Math.min(low, ...ends, ...include);
  const highest = Math.max(high, ...ends, ...include);
  const room = (highest - lowest || 1) * 0.1;
  return [lowest - room, highest + room];
}

function drawErrors({ ctx, valToPos }, points, colour) {
  ctx.save();
  ctx.strokeStyle = colour;
  ctx.lineWidth = 1.5 * devicePixelRatio;
  for (const { x, y, error } of points) {
    if (!error || y === null) continue;
    const [at, top, bottom] = [valToPos(x, "x", true), valToPos(y + error, "y", true), valToPos(y - error, "y", true)];
    ctx.beginPath();
    ctx.moveTo(at, top);
    ctx.lineTo(at, bottom);
    ctx.stroke();
  }
  ctx.restore();
}

function drawLines({ ctx, valToPos, bbox }, lines, colour) {
  ctx.save();
  ctx.strokeStyle = colour("--line-strong");
  ctx.lineWidth = devicePixelRatio;
  ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
  for (const { y } of lines) {
    const at = valToPos(y, "y", true);
    ctx.beginPath();
    ctx.moveTo(bbox.left, at);
    ctx.lineTo(bbox.left + bbox.width, at);
    ctx.stroke();
  }
  ctx.restore();
}

/** A canvas does not know light-dark(): asks the page for the colour in the present scheme. */
function resolved(place, colour) {
  const probe = document.createElement("span");
  probe.style.color = colour;
  place.append(probe);
  const result = getComputedStyle(probe).color;
  probe.remove();
  return result;
}
