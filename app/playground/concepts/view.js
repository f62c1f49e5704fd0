// The workshop: all concepts on the left; on the right one of them, or the editor for a new one.
import { html } from "../html.js";
import { loadConcepts } from "../state/concepts.js";
import { addressOf, route } from "../state/route.js";
import { useEffect } from "../vendor/preact-hooks.js";
import { ConceptDetail } from "./detail.js";
import { Editor } from "./editor.js";
import { ConceptList } from "./list.js";
import { VectorImport } from "./vector_import.js";

export function ConceptsView() {
  const { view, argument } = route.value;
  const id = view === "concepts" && argument ? `_worker/${argument}` : null;
  useEffect(() => void loadConcepts(), []);
  const isLanding = view === "concepts" && !id;
  return html`
    <div class=${isLanding ? "workshop landing" : "workshop"}>
      <${ConceptList} current=${id} />
      <div class="workshop-main">
        ${!isLanding && html`<p class="back"><a href=${addressOf("concepts")}>‹ All concepts</a></p>`}
        ${view === "new-concept" && html`<${Editor} />`} ${view === "import-vectors" && html`<${VectorImport} />`}
        ${id && html`<${ConceptDetail} key=${id} id=${id} />`}
        ${isLanding && html`<p class="empty">Choose a concept to see how well it works, or make a new one.</p>`}
      </div>
    </div>
  `;
}
