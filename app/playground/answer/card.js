// An answer with what belongs to it: state, error, clipped strengths, figures.
import { html } from "../html.js";
import { ErrorBox } from "../parts/errors.js";
import { strengthText } from "../parts/numbers.js";
import { byId, nameOf } from "../state/concepts.js";
import { colour } from "./colour_choice.js";
import { AnswerText } from "./text.js";

/** `concepts`: the ids that the request named. `onRetry`: runs the request again. */
export function AnswerBody({ answer, concepts = [], onRetry }) {
  answer.version.value;
  return html`
    ${answer.status === "waiting" && html`<${Waiting} notice=${answer.notice} concepts=${concepts} />`}
    <${AnswerText} answer=${answer} colour=${colour.value} />
    ${answer.status === "streaming" && html`<span class="caret" aria-hidden="true"></span>`}
    <${ErrorBox} error=${answer.error} onRetry=${onRetry} />
    <${Applied} applied=${answer.applied} />
  `;
}

// A request waits for concepts in these states.
const UNUSABLE = new Set(["untrained", "training"]);

function Waiting({ notice, concepts }) {
  if (notice) return html`<p class="waiting">${notice}</p>`;
  const trained = concepts.map((id) => byId.value.get(id)).find((card) => card && UNUSABLE.has(card.state));
  const progress = trained && Math.round(trained.progress * 100);
  return html`
    <p class="waiting">
      ${trained
        ? html`Training ${nameOf(trained.id)} first <progress max="100" value=${progress} aria-label="Training"></progress> ${progress} %`
        : "Waiting for the first token…"}
    </p>
  `;
}

function Applied({ applied }) {
  if (!applied) return null;
  const list = Object.entries(applied).map(([id, strength]) => `${nameOf(id)} ${strengthText(strength)}`);
  return html`<p class="applied">The server used ${list.join(", ")} instead.</p>`;
}

const ENDS = { stop: "complete", length: "cut at max_tokens", content_filter: "ended by the server" };

/** One line about an answer that has ended: why, how many tokens, how fast. */
export function Figures({ answer }) {
  answer.version.value;
  if (answer.isOpen || answer.status === "failed") return null;
  const end = answer.status === "stopped" ? "stopped" : ENDS[answer.finishReason];
  const count = answer.usage?.completion_tokens ?? answer.tokens.length;
  const seconds = (answer.endedAt - (answer.firstAt ?? answer.startedAt)) / 1000;
  const first = answer.firstAt && `first token after ${Math.round(answer.firstAt - answer.startedAt)} ms`;
  const speed = count > 1 && seconds > 0 && `${((count - 1) / seconds).toFixed(0)} tokens/s`;
  return html`<p class="figures">${[end, count > 0 && `${count} tokens`, speed, first].filter(Boolean).join(" · ")}</p>`;
}
