// steering_when: steer only if the prompt reads as a concept, or does not.
import { html } from "../html.js";
import { ConceptPicker } from "../parts/concept_picker.js";
import { nameOf } from "../state/concepts.js";
import { condition } from "../state/settings.js";

export function Condition() {
  const { concept, above, below } = condition.value ?? {};
  const bound = (name, value) => html`
    <label class="bound">
      ${name}
      <input type="number" step="any" value=${value ?? ""} onInput=${(event) => change(name, event.target)} />
    </label>
  `;
  return html`
    <div class="parameter">
      <span><code>steering_when</code></span>
      ${concept
        ? html`
            <div class="condition">
              <span>${nameOf(concept)}</span>
              ${bound("above", above)} ${bound("below", below)}
              <button type="button" class="quiet" aria-label="Remove the condition" onClick=${() => (condition.value = null)}>
                ✕
              </button>
            </div>
          `
        : html`<${ConceptPicker}
            label="Concept of the condition"
            placeholder="Choose a concept…"
            onPick=${(id) => (condition.value = { concept: id, above: 0.5 })}
          />`}
      <p>Steers the answer only if the prompt's mean reading of this concept is above or below a number.</p>
    </div>
  `;
}

function change(name, input) {
  if (input.validity.badInput) return;
  const { [name]: _, ...others } = condition.value;
  condition.value = input.value === "" ? others : { ...others, [name]: Number(input.value) };
}
