// A number on a line, with its error and the limits that it should keep.
import { html } from "../html.js";
import { plainText } from "./numbers.js";

/** `range`: the ends of the line. `good`: the part of it where the number should be. */
export function Scale({ label, value, error, range, good, note }) {
  const percent = (number) => ((Math.max(range[0], Math.min(range[1], number)) - range[0]) / (range[1] - range[0])) * 100;
  const span = (low, high) => ({ left: `${percent(low)}%`, width: `${percent(high) - percent(low)}%` });
  const isKnown = value !== null && value !== undefined;
  return html`
    <div class="scale">
      <dt>${label}</dt>
      <dd>
        <strong>${plainText(value)}</strong>
        ${error ? html` <small>± ${plainText(error)}</small>` : null}
        <div class="scale-line" aria-hidden="true">
          <span class="good" style=${span(...good)}></span>
          ${isKnown && error ? html`<span class="range" style=${span(value - error, value + error)}></span>` : null}
          ${isKnown && html`<span class="at" style=${{ left: `${percent(value)}%` }}></span>`}
        </div>
        <p class="note">${note}</p>
      </dd>
    </div>
  `;
}
