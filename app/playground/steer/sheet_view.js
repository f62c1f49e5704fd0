// The contact sheet as a grid of cards, from away to towards.
import { AnswerBody } from "../answer/card.js";
import { html } from "../html.js";
import { strengthText } from "../parts/numbers.js";
import { nameOf } from "../state/concepts.js";
import { steerConcepts } from "../state/concept_choice.js";
import { sheet } from "./sheet.js";

/** `onOpen`: shows side by side what a card shows. */
export function SheetView({ onOpen }) {
  if (!sheet.value) return null;
  const { concept, cells } = sheet.value;
  const open = (strength) => {
    steerConcepts.setStrength(concept, strength);
    onOpen();
  };
  return html`
    <ol class="sheet" aria-label="Answers by strength of ${nameOf(concept)}">
      ${cells.map((cell) => html`<${Cell} key=${cell.strength} ...${cell} concept=${concept} onOpen=${open} />`)}
    </ol>
  `;
}

function Cell({ strength, answer, concept, onOpen }) {
  answer.version.value;
  const used = answer.applied?.[concept];
  return html`
    <li class="cell" data-strength=${strength}>
      <header>
        <h3>${strength === 0 ? "No steering" : strengthText(strength)}</h3>
        ${used !== undefined && html`<span class="used">counts as ${strengthText(used)}</span>`}
        <button
          type="button"
          class="quiet"
          aria-label="Compare strength ${strengthText(strength)} side by side"
          title="Compare side by side"
          onClick=${() => onOpen(strength)}
        >
          ⇄
        </button>
      </header>
      <${AnswerBody} answer=${answer} concepts=${[concept]} />
    </li>
  `;
}
