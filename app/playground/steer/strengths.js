// The chosen concepts, with a slider for the strength of each.
import { html } from "../html.js";
import { ConceptPicker } from "../parts/concept_picker.js";
import { ErrorBox } from "../parts/errors.js";
import { strengthText } from "../parts/numbers.js";
import { byId, limitsOf, listError, loadConcepts, loadDetail, nameIn, nameOf } from "../state/concepts.js";
import { addressOf } from "../state/route.js";
import { parameters } from "../state/settings.js";
import { useEffect, useId } from "../vendor/preact-hooks.js";

const ABLATE_LIMITS = [0, 1];

export function Strengths({ concepts }) {
  return html`
    <section class="strengths" aria-labelledby="strengths-title">
      <h2 id="strengths-title">Concepts</h2>
      <${ErrorBox} error=${listError.value} onRetry=${loadConcepts} />
      <ul>
        ${concepts.list.value.map((each) => html`<${Strength} key=${each.id} ...${each} concepts=${concepts} />`)}
      </ul>
      <${ConceptPicker} label="Add a concept" placeholder="Add a concept…" without=${concepts.ids} onPick=${(id) => concepts.add(id)} />
    </section>
  `;
}

function Strength({ id, strength, concepts }) {
  const slider = useId();
  const card = byId.value.get(id);
  useEffect(() => {
    if (card?.state === "ready" && !limitsOf(id)) loadDetail(id).catch(() => {}); // the limits are only a hint
  }, [id, card?.state]);
  const limits = parameters.value.steering_mode === "ablate" ? ABLATE_LIMITS : limitsOf(id);
  const used = limits ? Math.max(limits[0], Math.min(limits[1], strength)) : strength;
  const name = nameOf(id);
  return html`
    <li>
      <div class="strength-head">
        <label for=${slider}><a href=${addressOf("concepts", nameIn(id))} title=${card?.description}>${name}</a></label>
        <span aria-hidden="true" class="strength ${signClass(strength)}">${strengthText(strength)}</span>
        <button type="button" class="quiet" aria-label="Remove ${name}" onClick=${() => concepts.remove(id)}>✕</button>
      </div>
      <input
        type="range"
        id=${slider}
        class=${signClass(strength)}
        min="-2"
        max="2"
        step="0.1"
        value=${strength}
        aria-valuetext=${spoken(strength)}
        style=${trackStyle(strength, limits)}
        onInput=${(event) => concepts.setStrength(id, Number(event.target.value))}
        onDblClick=${() => concepts.setStrength(id, 0)}
      />
      <p class="note">${noteOf(card, strength, used)}</p>
    </li>
  `;
}

const signClass = (strength) => (strength > 0 ? "up" : strength < 0 ? "down" : "zero");

function spoken(strength) {
  if (strength === 0) return "0, no steering";
  return strength > 0 ? `plus ${strength}, towards` : `minus ${-strength}, away`;
}

/** Where on the track the filled part begins and ends, and where the strengths end that the concept allows. */
function trackStyle(strength, limits) {
  const [low, high] = limits ?? [-2, 2];
  const percent = (value) => `${((value + 2) / 4) * 100}%`;
  return {
    "--from": percent(Math.min(0, strength)),
    "--to": percent(Math.max(0, strength)),
    "--low": percent(Math.max(-2, low)),
    "--high": percent(Math.min(2, high)),
  };
}

function noteOf(card, strength, used) {
  if (!card) return "The server does not list this concept.";
  switch (card.state) {
    case "untrained":
      return "Not trained yet. The first request trains it, which takes a while.";
    case "training":
    case "measuring":
      return `In training: ${Math.round(card.progress * 100)} %.`;
    case "failed":
      return "Its training failed.";
  }
  if (used === strength) return "";
  return `Counts as ${strengthText(used)}.`;
}
