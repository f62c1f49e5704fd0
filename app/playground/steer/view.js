// The view in which a person sees what steering does: a prompt, concepts, and the answers.
import { ColourChoice } from "../answer/colour_choice.js";
import { html } from "../html.js";
import { Segmented } from "../parts/segmented.js";
import { Settings } from "../parts/settings.js";
import { CopyRequest } from "../request/copy.js";
import { nameOf } from "../state/concepts.js";
import { steerConcepts } from "../state/concept_choice.js";
import { signal } from "../vendor/signals-core.js";
import { useEffect } from "../vendor/preact-hooks.js";
import { ComparisonView } from "./comparison_view.js";
import * as comparison from "./comparison.js";
import { SheetView } from "./sheet_view.js";
import * as sheet from "./sheet.js";
import { singleRequest } from "./single.js";

const MODES = [
  ["pair", "Side by side"],
  ["sheet", "Contact sheet"],
];
const HINTS = {
  pair: "The same prompt, without and with the concepts. Then move a slider: the steered answer follows.",
  sheet: "Nine short answers to the prompt, at nine strengths of one concept.",
};
const AGAIN_MS = 250;

const prompt = signal("Tell me about the hotel.");
const mode = signal("pair");
/** The concept whose strength the sheet varies. The first chosen one, unless another was selected. */
const varied = signal("");

export function SteerView() {
  const isSheet = mode.value === "sheet";
  const { job } = isSheet ? sheet : comparison;
  const answers = shownAnswers(isSheet);
  useEffect(followStrengths, []);
  return html`
    <div class="work">
      <form class="prompt" onSubmit=${submit}>
        <${Segmented} label="What to show" options=${MODES} value=${mode.value} onChange=${(value) => (mode.value = value)} />
        <label class="field">
          Prompt
          <textarea rows="2" value=${prompt} onInput=${(event) => (prompt.value = event.target.value)} onKeyDown=${sendOnEnter}></textarea>
        </label>
        <div class="actions">
          ${job.isRunning.value
            ? html`<button type="button" class="primary" onClick=${() => job.stop()}>Stop</button>`
            : html`<button type="submit" class="primary" disabled=${!prompt.value.trim() || (isSheet && !variedId())}>
                ${isSheet ? "Make the sheet" : "Compare"}
              </button>`}
          ${isSheet && html`<${SheetOptions} />`}
          <${CopyRequest} request=${() => requestToCopy(isSheet)} />
        </div>
      </form>
      <aside aria-label="Settings"><${Settings} concepts=${steerConcepts} /></aside>
      <section class="results" aria-label="Answers">
        ${answers.length > 0 ? html`<${ColourChoice} answers=${answers} />` : html`<p class="empty">${HINTS[mode.value]}</p>`}
        ${isSheet ? html`<${SheetView} onOpen=${openPair} />` : html`<${ComparisonView} onRetry=${submit} />`}
      </section>
    </div>
  `;
}

function SheetOptions() {
  const { answerLength, range, RANGES } = sheet;
  return html`
    <label>
      Vary
      <select value=${variedId()} onChange=${(event) => (varied.value = event.target.value)}>
        ${steerConcepts.ids.map((id) => html`<option key=${id} value=${id}>${nameOf(id)}</option>`)}
      </select>
    </label>
    <label>
      Strengths
      <select value=${range} onChange=${(event) => (range.value = event.target.value)}>
        ${Object.keys(RANGES).map((name) => html`<option key=${name} value=${name}>${name}</option>`)}
      </select>
    </label>
    <label>
      Tokens each
      <input type="number" min="1" max="500" value=${answerLength} onInput=${(event) => event.target.validity.valid && (answerLength.value = Number(event.target.value))} />
    </label>
  `;
}

function variedId() {
  const { ids } = steerConcepts;
  return ids.includes(varied.value) ? varied.value : (ids[0] ?? "");
}

function requestToCopy(isSheet) {
  const changes = isSheet ? { max_tokens: sheet.answerLength.value } : {};
  return singleRequest(prompt.value, steerConcepts.list.value, { changes });
}

function shownAnswers(isSheet) {
  if (isSheet) return (sheet.sheet.value?.cells ?? []).map((cell) => cell.answer);
  return [comparison.plain.value, comparison.steered.value].filter(Boolean).map((side) => side.answer);
}

function submit(event) {
  event?.preventDefault();
  if (mode.value === "sheet") sheet.fillSheet(prompt.value, variedId());
  else comparison.compare(prompt.value);
}

function sendOnEnter(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  submit(event);
}

function openPair() {
  mode.value = "pair";
  comparison.compare(prompt.value);
}

/** Once there is a pair, moving a slider asks the steered side again, as soon as the slider rests. */
function followStrengths() {
  let timer = null;
  let before = steerConcepts.list.value;
  return steerConcepts.list.subscribe((now) => {
    const isMove = now.length === before.length && now !== before;
    before = now;
    clearTimeout(timer);
    if (!isMove || mode.value !== "pair" || !comparison.steered.value) return;
    timer = setTimeout(() => comparison.compare(prompt.value), AGAIN_MS);
  });
}
