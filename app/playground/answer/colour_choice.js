// Chooses what colours the tokens, and shows what the colours mean.
import { html } from "../html.js";
import { nameOf } from "../state/concepts.js";
import { signal } from "../vendor/signals-core.js";
import { LOGPROB, NONE } from "./colours.js";

/** NONE, LOGPROB or a concept's id. */
export const colour = signal(NONE);

/** `answers`: those on the page. Only what one of them reports is offered. */
export function ColourChoice({ answers }) {
  const offered = optionsFor(answers);
  const value = offered.some(([each]) => each === colour.value) ? colour.value : NONE;
  return html`
    <div class="colour-choice">
      <label>
        Colour by
        <select value=${value} onChange=${(event) => (colour.value = event.target.value)}>
          ${offered.map(([each, label]) => html`<option key=${each} value=${each}>${label}</option>`)}
        </select>
      </label>
      <${Legend} value=${value} />
    </div>
  `;
}

function optionsFor(answers) {
  const tokens = answers.map((answer) => (answer.version.value, answer.tokens[0])).filter(Boolean);
  const ids = new Set(tokens.flatMap((token) => Object.keys(token.readings ?? {})));
  const hasLogprobs = tokens.some((token) => token.logprob !== undefined);
  return [
    [NONE, "nothing"],
    ...(hasLogprobs ? [[LOGPROB, "probability"]] : []),
    ...[...ids].map((id) => [id, nameOf(id)]),
  ];
}

function Legend({ value }) {
  if (value === NONE) return null;
  const [low, high] = value === LOGPROB ? ["likely", "unlikely"] : ["like negative examples", "like positive ones"];
  const classes = value === LOGPROB ? [0, 2, 4, 6, 8].map((n) => `p${n}`) : [-4, -2, 0, 2, 4].map((n) => `r${n}`);
  return html`
    <span class="legend">
      ${low}
      <span aria-hidden="true">${classes.map((name) => html`<span key=${name} class=${`t ${name}`}></span>`)}</span>
      ${high}
    </span>
  `;
}
