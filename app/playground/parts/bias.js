// The control for logit_bias: tokens are written as words, and the server says which token ids they are.
import { tokenize } from "../api/server.js";
import { html } from "../html.js";
import { model } from "../state/settings.js";
import { useState } from "../vendor/preact-hooks.js";
import { visible } from "../answer/tokens.js";

export function BiasControl({ id, value = {}, set, described }) {
  const [names, setNames] = useState({}); // token id: its text
  const [error, setError] = useState(null);
  const add = async (word, bias) => {
    try {
      const tokens = await tokensOf(word);
      setNames({ ...names, ...Object.fromEntries(tokens) });
      set({ ...value, ...Object.fromEntries(tokens.map(([token]) => [token, bias])) });
      setError(null);
    } catch (failure) {
      setError(failure.message);
    }
  };
  const remove = (token) => {
    const { [token]: _, ...others } = value;
    set(Object.keys(others).length ? others : undefined);
  };
  return html`
    <${BiasForm} ...${{ id, described, add }} />
    ${error && html`<p class="problem" role="alert">${error}</p>`}
    <ul class="removable">
      ${Object.entries(value).map(
        ([token, bias]) => html`
          <li key=${token}>
            <span><code>${names[token] ? visible(names[token]) : `#${token}`}</code> ${bias}</span>
            <button type="button" class="quiet" aria-label="Remove the bias of token ${token}" onClick=${() => remove(token)}>
              ✕
            </button>
          </li>
        `,
      )}
    </ul>
  `;
}

function BiasForm({ id, described, add }) {
  const [word, setWord] = useState("");
  const [bias, setBias] = useState("-100");
  const isReady = word !== "" && Number.isFinite(Number.parseFloat(bias));
  const submit = () => {
    if (!isReady) return;
    add(word, Number(bias));
    setWord("");
  };
  const onKeyDown = (event) => event.key === "Enter" && submit();
  return html`
    <div class="bias-form">
      <input
        id=${id}
        value=${word}
        placeholder="text or #id"
        aria-describedby=${described}
        onInput=${(event) => setWord(event.target.value)}
        onKeyDown=${onKeyDown}
      />
      <input
        type="number"
        value=${bias}
        step="any"
        aria-label="Bias"
        onInput=${(event) => setBias(event.target.value)}
        onKeyDown=${onKeyDown}
      />
      <button type="button" disabled=${!isReady} onClick=${submit}>Add</button>
    </div>
  `;
}

/** `[id, text]` of each token of the word. `#7` is the token with the id 7. */
async function tokensOf(word) {
  const id = /^#(\d+)$/.exec(word)?.[1];
  if (id) return [[id, ""]];
  const { tokens, token_ids: ids } = await tokenize(model.value, word);
  return ids.map((each, index) => [String(each), tokens[index]]);
}
