// The editor for a new concept: name, description, and a table of pairs.
import { html } from "../html.js";
import { ErrorBox } from "../parts/errors.js";
import { saveFile } from "../parts/files.js";
import { useState } from "../vendor/preact-hooks.js";
import { addPair, change, changePair, clearDraft, create, creationError, draft, filled, isSending, obstacle, removePair } from "./draft.js";
import { PairImport } from "./pair_import.js";
import { toYaml } from "./yaml.js";

const PAGE = 25;

export function Editor() {
  const { name, description } = draft.value;
  const submit = (event) => {
    event.preventDefault();
    if (!obstacle.value) create();
  };
  const saveYaml = async () => saveFile(`${name}.yaml`, await toYaml({ name, description, pairs: filled.value }));
  return html`
    <form class="editor" onSubmit=${submit}>
      <h2>New concept</h2>
      <p class="note">
        A concept is a list of pairs: two texts that differ in the concept and in nothing else. 24 pairs or more make a
        good one; with fewer than 8, the report does not judge.
      </p>
      <div class="editor-head">
        <label class="field">
          Name
          <input value=${name} maxlength="64" placeholder="pirate" autocomplete="off" onInput=${(event) => change({ name: event.target.value })} />
        </label>
        <label class="field">
          Description
          <input value=${description} maxlength="1000" placeholder="Talks like a pirate" onInput=${(event) => change({ description: event.target.value })} />
        </label>
      </div>
      <${PairImport} />
      <${PairTable} />
      <${ErrorBox} error=${creationError.value} />
      <div class="actions">
        <button type="submit" class="primary" disabled=${Boolean(obstacle.value) || isSending.value}>
          ${isSending.value ? "Sending…" : "Create and train"}
        </button>
        <button type="button" disabled=${Boolean(obstacle.value)} onClick=${saveYaml}>Export as YAML</button>
        <button type="button" class="quiet" onClick=${clearDraft}>Clear</button>
        <span class="note">${obstacle.value || `${filled.value.length} ${filled.value.length === 1 ? "pair" : "pairs"}`}</span>
      </div>
    </form>
  `;
}

function PairTable() {
  const { pairs } = draft.value;
  const [wanted, setPage] = useState(0);
  const [hasPrompts, setPrompts] = useState(false);
  const last = Math.max(0, Math.ceil(pairs.length / PAGE) - 1);
  const page = Math.min(wanted, last);
  const showsPrompts = hasPrompts || pairs.some((pair) => pair.prompt);
  const add = () => {
    addPair();
    setPage(Math.floor(pairs.length / PAGE));
  };
  return html`
    <table class="pairs">
      <thead>
        <tr>
          <th scope="col" class="count"><span class="hidden">Number</span></th>
          ${showsPrompts && html`<th scope="col">Prompt <small>may be empty</small></th>`}
          <th scope="col">Positive <small>shows the concept</small></th>
          <th scope="col">Negative <small>does not</small></th>
          <th scope="col" class="remove"><span class="hidden">Remove</span></th>
        </tr>
      </thead>
      <tbody>
        ${pairs.slice(page * PAGE, (page + 1) * PAGE).map((pair, index) => html`<${PairRow} key=${page * PAGE + index} ...${{ pair, showsPrompts }} index=${page * PAGE + index} />`)}
      </tbody>
    </table>
    <div class="actions">
      <button type="button" onClick=${add}>Add a pair</button>
      ${!showsPrompts && html`<button type="button" class="quiet" onClick=${() => setPrompts(true)}>With prompts</button>`}
      ${last > 0 && html`<${Pages} ...${{ page, last, setPage }} count=${pairs.length} />`}
    </div>
  `;
}

function PairRow({ pair, index, showsPrompts }) {
  const number = index + 1;
  const cell = (field, label) => html`
    <td data-label=${label}>
      <textarea rows="1" aria-label="${label} text of pair ${number}" value=${pair[field]} onInput=${(event) => changePair(index, { [field]: event.target.value })}></textarea>
    </td>
  `;
  return html`
    <tr>
      <td class="count">${number}</td>
      ${showsPrompts && cell("prompt", "Prompt")} ${cell("positive", "Positive")} ${cell("negative", "Negative")}
      <td class="remove"><button type="button" class="quiet" aria-label="Remove pair ${number}" onClick=${() => removePair(index)}>✕</button></td>
    </tr>
  `;
}

function Pages({ page, last, setPage, count }) {
  return html`
    <span class="pages">
      <button type="button" class="quiet" aria-label="Previous pairs" disabled=${page === 0} onClick=${() => setPage(page - 1)}>‹</button>
      ${page * PAGE + 1}–${Math.min(count, (page + 1) * PAGE)} of ${count}
      <button type="button" class="quiet" aria-label="Next pairs" disabled=${page === last} onClick=${() => setPage(page + 1)}>›</button>
    </span>
  `;
}
