// One concept: its state, what can be done with it, and its report.
import { deleteConcept, exportVectors, readExamples } from "../api/server.js";
import { html } from "../html.js";
import { Dialog } from "../parts/dialog.js";
import { ErrorBox } from "../parts/errors.js";
import { saveFile } from "../parts/files.js";
import { byId, details, listing, loadConcepts, loadDetail, nameIn, nameOf } from "../state/concepts.js";
import { steerConcepts } from "../state/concept_choice.js";
import { go } from "../state/route.js";
import { model } from "../state/settings.js";
import { useEffect, useState } from "../vendor/preact-hooks.js";
import { StateBadge } from "./list.js";
import { startFrom } from "./draft.js";
import { Report } from "./report.js";
import { toYaml } from "./yaml.js";

export function ConceptDetail({ id }) {
  const card = byId.value.get(id);
  const detail = details.value.get(id);
  const [error, setError] = useState(null);
  useEffect(() => {
    setError(null);
    if (card && !detail) loadDetail(id).catch(setError);
  }, [id, card?.state, Boolean(detail)]);
  if (!listing.value) return null;
  if (!card) return html`<p class="empty">There is no concept called ${nameOf(id)}.</p>`;
  return html`
    <article class="concept" aria-label=${nameOf(id)}>
      <header>
        <h2 title=${id}>${nameOf(id)} <${StateBadge} concept=${card} /></h2>
        <p>${card.description}</p>
        <${Actions} card=${card} onError=${setError} />
      </header>
      <${ErrorBox} error=${error} />
      <${Training} card=${card} failure=${detail?.error} />
      ${detail?.report && html`<${Report} report=${detail.report} onTry=${(strength) => tryAt(id, strength)} />`}
    </article>
  `;
}

function tryAt(id, strength) {
  steerConcepts.only(id, strength);
  go("steer");
}

function Training({ card, failure }) {
  const { state, progress } = card;
  switch (state) {
    case "untrained":
      return html`<p class="note">It is trained when the server has time, or when a request names it. Try it, and the training begins.</p>`;
    case "training":
    case "measuring":
      return html`
        <div class="progress-line" role="group" aria-label="Training">
          <p>${state === "training" ? "The model reads the pairs and makes the vector." : "It can be used already. Its effect is being measured."}</p>
          <progress max="100" value=${Math.round(progress * 100)} aria-label="Progress"></progress>
          <span>${Math.round(progress * 100)} %</span>
        </div>
      `;
    case "failed":
      return html`<div class="verdict bad"><strong>The training failed</strong><p>${failure}</p></div>`;
  }
  return null;
}

function Actions({ card, onError }) {
  const { id, shipped, state } = card;
  const [isDeleting, setDeleting] = useState(false);
  const withPairs = (use) => () =>
    readExamples(id).then((examples) => use({ name: nameIn(id), description: card.description, pairs: examples }), onError);
  const saveYaml = withPairs(async (concept) => saveFile(`${nameIn(id)}.yaml`, await toYaml(concept)));
  const editCopy = withPairs((concept) => {
    startFrom(concept);
    go("new-concept");
  });
  const saveVectors = () => exportVectors(id, model.value).then((blob) => saveFile(`${nameIn(id)}.safetensors`, blob), onError);
  const remove = async () => {
    setDeleting(false);
    try {
      await deleteConcept(id);
      steerConcepts.remove(id);
      await loadConcepts();
      go("concepts");
    } catch (error) {
      onError(error);
    }
  };
  return html`
    <div class="actions">
      ${state !== "failed" && html`<button type="button" class="primary" onClick=${() => tryAt(id, 1)}>Try it</button>`}
      ${state === "ready" && html`<button type="button" onClick=${saveVectors}>Download vectors</button>`}
      ${card.num_examples > 0 &&
      html`
        <button type="button" onClick=${saveYaml}>Export as YAML</button>
        <button type="button" onClick=${editCopy}>Edit a copy</button>
      `}
      ${!shipped && html`<button type="button" class="quiet danger" onClick=${() => setDeleting(true)}>Delete</button>`}
    </div>
    ${isDeleting &&
    html`
      <${Dialog} title="Delete ${nameOf(id)}?" onClose=${() => setDeleting(false)}>
        <p>Nobody can use it any more. Answers that it steers at the moment go on.</p>
        <footer>
          <button type="button" onClick=${() => setDeleting(false)}>Cancel</button>
          <button type="button" class="primary danger" onClick=${remove}>Delete</button>
        </footer>
      <//>
    `}
  `;
}
