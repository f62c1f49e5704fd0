// Fills the table of pairs from a pasted text or a file.
import { html } from "../html.js";
import { useState } from "../vendor/preact-hooks.js";
import { imported, importText } from "./draft.js";

export function PairImport() {
  const [text, setText] = useState("");
  const take = async (given) => {
    if (await importText(given)) setText("");
  };
  const takeFile = async (file) => file && take(await file.text());
  const onDrop = (event) => {
    event.preventDefault();
    takeFile(event.dataTransfer.files[0]);
  };
  return html`
    <details class="group" onDragOver=${(event) => event.preventDefault()} onDrop=${onDrop}>
      <summary>Paste or open pairs</summary>
      <p class="note">
        CSV or cells of a spreadsheet with the columns <code>positive</code>, <code>negative</code> and perhaps${" "}
        <code>prompt</code>; JSON; JSON Lines; or YAML, as in <code>configs/concepts</code>.
      </p>
      <textarea rows="4" aria-label="Pairs as text" value=${text} onInput=${(event) => setText(event.target.value)}></textarea>
      <div class="actions">
        <button type="button" disabled=${!text.trim()} onClick=${() => take(text)}>Add these pairs</button>
        <label class="file">
          <span>or open a file</span>
          <input type="file" accept=".csv,.tsv,.txt,.json,.jsonl,.ndjson,.yaml,.yml" onChange=${(event) => takeFile(event.target.files[0])} />
        </label>
      </div>
    </details>
    <${ImportResult} />
  `;
}

function ImportResult() {
  const { done, problem } = imported.value;
  if (problem) return html`<p class="problem" role="alert">${problem}</p>`;
  return done ? html`<p class="note">${done}</p>` : null;
}
