// The panel beside answers: concepts, steering options, and all parameters of a request.
import { html } from "../html.js";
import { DELIVERY, DETAILS, LENGTH, SAMPLING, STEERING } from "../request/parameters.js";
import { alsoRead, isChanged, readsChosen, resetParameters, systemMessage } from "../state/settings.js";
import { nameOf } from "../state/concepts.js";
import { Condition } from "../steer/condition.js";
import { Strengths } from "../steer/strengths.js";
import { ConceptPicker } from "./concept_picker.js";
import { Parameter } from "./parameter.js";

/** `concepts`: the ConceptChoice of the view. */
export function Settings({ concepts }) {
  return html`
    <div class="panel concepts"><${Strengths} concepts=${concepts} /></div>
    <div class="panel parameters">
    <${Group} title="How to steer" parameters=${STEERING}><${Condition} /><//>
    <${Group} title="Length and sampling" parameters=${[...LENGTH, ...SAMPLING]} />
    <${Group} title="What comes back" parameters=${[...DETAILS, ...DELIVERY]}><${Readings} /><//>
    <${SystemMessage} />
    ${isChanged.value &&
    html`<button type="button" class="quiet reset" onClick=${resetParameters}>Reset all parameters</button>`}
    </div>
  `;
}

function Group({ title, parameters, children }) {
  return html`
    <details class="group">
      <summary>${title}</summary>
      ${parameters.map((parameter) => html`<${Parameter} key=${parameter.name} parameter=${parameter} />`)}
      ${children}
    </details>
  `;
}

function Readings() {
  const remove = (id) => (alsoRead.value = alsoRead.value.filter((each) => each !== id));
  return html`
    <div class="parameter boolean">
      <label for="readings"><code>steering_readings</code></label>
      <input
        type="checkbox"
        id="readings"
        checked=${readsChosen}
        aria-describedby="readings-text"
        onChange=${(event) => (readsChosen.value = event.target.checked)}
      />
      <p id="readings-text">Returns how strongly the concepts above are present at each token.</p>
      <${ConceptPicker}
        label="Also read a concept"
        placeholder="Also read…"
        without=${alsoRead.value}
        onPick=${(id) => (alsoRead.value = [...alsoRead.value, id])}
      />
      <ul class="removable">
        ${alsoRead.value.map(
          (id) => html`
            <li key=${id}>
              ${nameOf(id)}
              <button type="button" class="quiet" aria-label="Do not read ${nameOf(id)}" onClick=${() => remove(id)}>✕</button>
            </li>
          `,
        )}
      </ul>
    </div>
  `;
}

function SystemMessage() {
  return html`
    <details class="group">
      <summary>System message</summary>
      <textarea
        rows="3"
        aria-label="System message"
        placeholder="None"
        value=${systemMessage}
        onInput=${(event) => (systemMessage.value = event.target.value)}
      ></textarea>
    </details>
  `;
}
