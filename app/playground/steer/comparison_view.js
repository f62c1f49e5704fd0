// Two answers beside each other.
import { AnswerBody, Figures } from "../answer/card.js";
import { html } from "../html.js";
import { strengthText } from "../parts/numbers.js";
import { nameOf } from "../state/concepts.js";
import { models } from "../state/settings.js";
import { plain, steered } from "./comparison.js";

/** `onRetry`: asks again. */
export function ComparisonView({ onRetry }) {
  if (!plain.value) return null;
  return html`
    <div class="comparison">
      <${Side} title="Without steering" side=${plain.value} onRetry=${onRetry} />
      ${steered.value
        ? html`<${Side} title="Steered" side=${steered.value} onRetry=${onRetry} />`
        : html`<p class="note side">Add a concept to see a steered answer here.</p>`}
    </div>
  `;
}

function Side({ title, side, onRetry }) {
  const { answer, concepts, request } = side;
  return html`
    <article class="side" aria-label=${title}>
      <header>
        <h3>${title}</h3>
        <${ModelName} name=${request.body.model} />
        ${concepts.map(({ id, strength }) => html`<${Chip} key=${id} ...${{ id, strength }} />`)}
      </header>
      <${AnswerBody} answer=${answer} concepts=${concepts.map(({ id }) => id)} onRetry=${onRetry} />
      <${Figures} answer=${answer} />
    </article>
  `;
}

/** Which model has answered. Nothing if the server has one only. */
export function ModelName({ name }) {
  return models.value.length > 1 && html`<span class="chip zero">${name}</span>`;
}

export function Chip({ id, strength }) {
  const sign = strength > 0 ? "up" : strength < 0 ? "down" : "zero";
  return html`<span class="chip ${sign}">${nameOf(id)} ${strengthText(strength)}</span>`;
}
