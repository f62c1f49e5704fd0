// Fills the table of pairs from a pasted text or a file.
import { html } from "../html.js";
import { announce } from "../state/announcements.js";
import { useState } from "../vendor/preact-hooks.js";
import { importText } from "./draft.js";

export function PairImport() {
  const [text, setText] = useState("");
  const [result, setResult] = useState({});
  const take = async (given) => {
    try {
      const count = await importText(given);
      setText("");
      setResult({ done: `${count} pairs added.` });
      announce(`${count} pairs added.`);
    } catch (error) {
      setResult({ problem: error.message });
    }
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
      ${result.problem && html`<p class="problem" role="alert">${result.problem}</p>`}
      ${result.done && html`<p class="note">${result.done}</p>`}
    </details>
  `;
}
