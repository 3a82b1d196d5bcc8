// The curve of the losses, in an SVG that any width fits.

import { h, number, svg } from "./dom.js";

const [WIDTH, HEIGHT, LEFT, BOTTOM, TOP] = [400, 150, 46, 20, 8];

/** A figure that `update` draws points `[step, loss]` into. */
export class LossChart {
  constructor() {
    this.svg = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", class: "dk-chart" });
    this.element = h("figure", { className: "dk-figure" }, h("figcaption", {}, "Loss"), this.svg);
    this.update([], 0);
  }

  /** Draw them; `total` is the last step of the axis. Steep curves get a logarithmic axis. */
  update(points, total) {
    const found = points.filter(([step, loss]) => Number.isFinite(step) && Number.isFinite(loss));
    const losses = found.map(([, loss]) => loss);
    const [low, high] = [Math.min(...losses), Math.max(...losses)];
    const isLog = low > 0 && high > 20 * low;
    const level = (loss) => (isLog ? Math.log(loss) : loss);
    const last = Math.max(total || 0, ...found.map(([step]) => step), 1);
    const x = (step) => LEFT + ((WIDTH - LEFT - 8) * step) / last;
    const y = (loss) => {
      const span = level(high) - level(low) || 1;
      return HEIGHT - BOTTOM - ((HEIGHT - BOTTOM - TOP) * (level(loss) - level(low))) / span;
    };
    const parts = [
      svg("line", { x1: LEFT, x2: WIDTH - 8, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM, class: "dk-axis" }),
      svg("line", { x1: LEFT, x2: LEFT, y1: TOP, y2: HEIGHT - BOTTOM, class: "dk-axis" }),
    ];
    const label = (text, at) => parts.push(svg("text", { class: "dk-tick", ...at }, text));
    if (found.length) {
      label(number(high), { x: LEFT - 6, y: TOP + 8, "text-anchor": "end" });
      label(number(low), { x: LEFT - 6, y: HEIGHT - BOTTOM, "text-anchor": "end" });
      label("0", { x: LEFT, y: HEIGHT - 5, "text-anchor": "middle" });
      label(`step ${last}`, { x: WIDTH - 8, y: HEIGHT - 5, "text-anchor": "end" });
      const path = found.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" ");
      parts.push(svg("polyline", { points: path, class: "dk-curve" }));
      const [step, loss] = found.at(-1);
      parts.push(svg("circle", { cx: x(step), cy: y(loss), r: 3.5, class: "dk-dot" }));
      this.svg.setAttribute("aria-label", `Loss${isLog ? ", logarithmic" : ""}: ${number(losses[0])} at step ${found[0][0]}, ${number(loss)} at step ${step}`);
    } else {
      label("No losses yet", { x: (WIDTH + LEFT) / 2, y: HEIGHT / 2, "text-anchor": "middle" });
      this.svg.setAttribute("aria-label", "Loss: none yet");
    }
    this.svg.replaceChildren(...parts);
  }
}
