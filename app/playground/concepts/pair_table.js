// The table of pairs, in pages. Cells of a spreadsheet can be pasted into it.
import { html } from "../html.js";
import { useLayoutEffect, useRef, useState } from "../vendor/preact-hooks.js";
import { addPair, changePair, draft, importText, removePair } from "./draft.js";

const PAGE = 25;

export function PairTable() {
  const { pairs } = draft.value;
  const rows = useRef();
  const isAdding = useRef(false);
  const [wanted, setPage] = useState(0);
  const [hasPrompts, setPrompts] = useState(false);
  const last = Math.max(0, Math.ceil(pairs.length / PAGE) - 1);
  const page = Math.min(wanted, last);
  const usesPrompts = pairs.some((pair) => pair.prompt);
  const showsPrompts = hasPrompts || usesPrompts;
  const add = () => {
    isAdding.current = true;
    addPair();
    setPage(Math.floor(pairs.length / PAGE));
  };
  useLayoutEffect(() => {
    if (isAdding.current) rows.current.querySelector("tr:last-child textarea").focus();
    isAdding.current = false;
  }, [pairs.length]);
  return html`
    <table class="pairs" onPaste=${pasteCells}>
      <thead>
        <tr>
          <th scope="col" class="count"><span class="hidden">Number</span></th>
          ${showsPrompts && html`<th scope="col">Prompt <small>may be empty</small></th>`}
          <th scope="col">Positive <small>shows the concept</small></th>
          <th scope="col">Negative <small>does not</small></th>
          <th scope="col" class="remove"><span class="hidden">Remove</span></th>
        </tr>
      </thead>
      <tbody ref=${rows} onKeyDown=${(event) => addAtTheEnd(event, pairs, add)}>
        ${pairs.slice(page * PAGE, (page + 1) * PAGE).map((pair, index) => html`<${PairRow} key=${page * PAGE + index} ...${{ pair, showsPrompts }} index=${page * PAGE + index} />`)}
      </tbody>
    </table>
    <div class="actions">
      <button type="button" onClick=${add}>Add a pair</button>
      ${!usesPrompts && html`<button type="button" class="quiet" onClick=${() => setPrompts(!hasPrompts)}>${hasPrompts ? "Without" : "With"} prompts</button>`}
      ${last > 0 && html`<${Pages} ...${{ page, last, setPage }} count=${pairs.length} />`}
    </div>
  `;
}

/** Tab in the last cell begins the next pair, as in other tables, unless the last pair is still empty. */
function addAtTheEnd(event, pairs, add) {
  if (event.key !== "Tab" || event.shiftKey || !event.target.matches("textarea")) return;
  const { positive, negative } = pairs.at(-1);
  const isLast = event.target.dataset.cell === `${pairs.length - 1}-negative`;
  if (!isLast || !positive.trim() || !negative.trim()) return;
  event.preventDefault();
  add();
}

/** Cells of a spreadsheet have tabs between them. They become pairs of their own. */
function pasteCells(event) {
  const text = event.clipboardData.getData("text/plain");
  if (!text.includes("\t")) return;
  event.preventDefault();
  importText(text);
}

function PairRow({ pair, index, showsPrompts }) {
  const number = index + 1;
  const cell = (field, label) => html`
    <td data-label=${label}>
      <textarea rows="1" aria-label="${label} text of pair ${number}" data-cell="${index}-${field}" value=${pair[field]} onInput=${(event) => changePair(index, { [field]: event.target.value })}></textarea>
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
