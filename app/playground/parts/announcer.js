// The live region of the page. What happens is said here once, not token by token.
import { html } from "../html.js";
import { announcement } from "../state/announcements.js";

export function Announcer() {
  return html`<p class="hidden" role="status" aria-live="polite">${announcement}</p>`;
}
