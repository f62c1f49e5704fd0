// The editor for a new concept: name, description, pairs, and what to do with them.
import { html } from "../html.js";
import { ErrorBox } from "../parts/errors.js";
import { saveFile } from "../parts/files.js";
import { countText } from "../parts/numbers.js";
import { change, clearDraft, create, creationError, draft, filled, hasBadName, isSending, obstacle, replaced, swapDrafts } from "./draft.js";
import { PairImport } from "./pair_import.js";
import { PairTable } from "./pair_table.js";
import { toYaml } from "./yaml.js";

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
          <input value=${name} maxlength="64" placeholder="pirate" autocomplete="off" aria-invalid=${hasBadName.value} onInput=${(event) => change({ name: event.target.value })} />
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
        ${replaced.value && html`<button type="button" class="quiet" onClick=${swapDrafts}>Bring the last draft back</button>`}
        <span class=${hasBadName.value ? "note problem" : "note"}>${obstacle.value || countText(filled.value.length, "pair")}</span>
      </div>
    </form>
  `;
}
