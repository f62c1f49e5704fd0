// The dialog that asks for the access token.
import { html } from "../html.js";
import { keepToken, question, token } from "../state/access.js";
import { useState } from "../vendor/preact-hooks.js";
import { Dialog } from "./dialog.js";

export function AccessDialog() {
  if (!question.value) return null;
  return html`<${TokenForm} ...${question.value} />`;
}

function TokenForm({ message, answer }) {
  const [given, setGiven] = useState("");
  const submit = (event) => {
    event.preventDefault();
    answer(given.trim());
  };
  return html`
    <${Dialog} title="Access token" onClose=${() => answer("")}>
      <form onSubmit=${submit}>
        <p>${token.value ? `The server says: ${message}.` : "This server needs an access token."}</p>
        <label class="field">
          Access token
          <input
            type="password"
            autocomplete="off"
            autofocus
            value=${given}
            onInput=${(event) => setGiven(event.target.value)}
          />
        </label>
        <p class="note">
          <code>tiller token new NAME</code> makes one, where the server runs. This tab keeps it until you close it.
        </p>
        <footer>
          <button type="submit" class="primary" disabled=${!given.trim()}>Continue</button>
        </footer>
      </form>
    <//>
  `;
}

/** Forgets the token, so that the next request asks for one. */
export function ForgetToken() {
  if (!token.value) return null;
  return html`<button type="button" class="quiet" onClick=${() => keepToken("")}>Forget access token</button>`;
}
