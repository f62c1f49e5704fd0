import { html } from "../html.js";
export function ConceptsView() { return html`<p>later</p>`; }
