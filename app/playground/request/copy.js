// The button that shows the current request as code to copy.
import { html } from "../html.js";
import { copyText } from "../parts/clipboard.js";
import { Dialog } from "../parts/dialog.js";
import { Segmented } from "../parts/segmented.js";
import { announce } from "../state/announcements.js";
import { address } from "../api/client.js";
import { token } from "../state/access.js";
import { useState } from "../vendor/preact-hooks.js";
import { LANGUAGES, snippet } from "./snippets.js";

/** `request()`: the `{ body, nice }` to show. */
export function CopyRequest({ request }) {
  const [shown, setShown] = useState(null);
  return html`
    <button type="button" class="copy" onClick=${() => setShown(request())}>Copy as code</button>
    ${shown && html`<${CodeDialog} request=${shown} onClose=${() => setShown(null)} />`}
  `;
}

function CodeDialog({ request, onClose }) {
  const [language, setLanguage] = useState("curl");
  const [isStreamed, setStreamed] = useState(false);
  const [hasDetails, setDetails] = useState(false);
  const [isCopied, setCopied] = useState(false);
  const server = { address, needsToken: Boolean(token.value) };
  const code = snippet(language, request, server, { isStreamed, hasDetails });
  const change = (set) => (value) => {
    set(value);
    setCopied(false);
  };
  const copy = async () => {
    await copyText(code);
    setCopied(true);
    announce("Copied.");
  };
  return html`
    <${Dialog} title="The request as code" isWide=${true} onClose=${onClose}>
      <${Segmented} label="Language" options=${LANGUAGES} value=${language} onChange=${change(setLanguage)} />
      <pre class="code" tabindex="0" aria-label="Code"><code>${code}</code></pre>
      <footer>
        <${Check} label="streamed" isOn=${isStreamed} set=${change(setStreamed)} />
        <${Check} label="with log probabilities and readings" isOn=${hasDetails} set=${change(setDetails)} />
        <button type="button" class="primary" onClick=${copy}>${isCopied ? "Copied" : "Copy"}</button>
      </footer>
    <//>
  `;
}

function Check({ label, isOn, set }) {
  return html`
    <label class="check">
      <input type="checkbox" checked=${isOn} onChange=${(event) => set(event.target.checked)} />
      ${label}
    </label>
  `;
}
