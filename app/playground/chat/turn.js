// One turn of the conversation, with its branches and what can be done with it.
import { AnswerBody, Figures } from "../answer/card.js";
import { html } from "../html.js";
import { copyText } from "../parts/clipboard.js";
import { Chip, ModelName } from "../steer/comparison_view.js";
import { useLayoutEffect, useRef, useState } from "../vendor/preact-hooks.js";
import { edit, job, regenerate, showBranch, tree } from "./conversation.js";
import { branches } from "./tree.js";

/** The id of the field for the next message. */
export const COMPOSER = "next-message";

export function Turn({ node }) {
  return node.role === "user" ? html`<${UserTurn} node=${node} />` : html`<${AssistantTurn} node=${node} />`;
}

function UserTurn({ node }) {
  const [draft, setDraft] = useState(null);
  const isEdited = draft !== null;
  const button = useRef();
  const field = useRef();
  const wasEdited = useRef(false);
  useLayoutEffect(() => {
    if (isEdited) field.current.focus();
    else if (wasEdited.current) button.current.focus();
    wasEdited.current = isEdited;
  }, [isEdited]);
  const send = (event) => {
    event.preventDefault();
    if (!draft.trim()) return;
    edit(node, draft);
    document.getElementById(COMPOSER).focus(); // the conversation goes on there
  };
  const onKeyDown = (event) => {
    if (event.key === "Escape") setDraft(null);
    if (event.key === "Enter" && event.target.matches("textarea") && !event.shiftKey && !event.isComposing) send(event);
  };
  return html`
    <li class="turn user">
      <h2 class="hidden">You</h2>
      ${isEdited
        ? html`
            <form onSubmit=${send} onKeyDown=${onKeyDown}>
              <textarea rows="3" aria-label="Edited message" ref=${field} value=${draft} onInput=${(event) => setDraft(event.target.value)}></textarea>
              <div class="actions">
                <button type="submit" class="primary" disabled=${!draft.trim()}>Send as a new branch</button>
                <button type="button" onClick=${() => setDraft(null)}>Cancel</button>
              </div>
            </form>
          `
        : html`<p class="text">${node.text}</p>`}
      <footer>
        <${Branches} node=${node} />
        ${!isEdited && html`<button type="button" class="quiet" ref=${button} disabled=${job.isRunning.value} onClick=${() => setDraft(node.text)}>Edit</button>`}
      </footer>
    </li>
  `;
}

function AssistantTurn({ node }) {
  const { answer, concepts, request, isRepeat } = node;
  answer.version.value;
  const again = () => regenerate(node);
  return html`
    <li class="turn assistant">
      <h2 class="hidden">Answer</h2>
      <p class="chips">
        <${ModelName} name=${request.body.model} />
        ${concepts.map((concept) => html`<${Chip} key=${concept.id} ...${concept} />`)}
      </p>
      <${AnswerBody} answer=${answer} concepts=${concepts.map(({ id }) => id)} onRetry=${again} />
      ${isRepeat && !answer.isOpen && html`<p class="note">At temperature 0, the same request has the same answer. Raise the temperature for another one.</p>`}
      <footer>
        <${Branches} node=${node} />
        ${!answer.isOpen &&
        html`
          <button type="button" class="quiet" disabled=${job.isRunning.value} onClick=${again}>Regenerate</button>
          <${CopyText} answer=${answer} />
          <${Figures} answer=${answer} />
        `}
      </footer>
    </li>
  `;
}

function CopyText({ answer }) {
  const [isCopied, setCopied] = useState(false);
  const copy = async () => {
    await copyText(answer.text);
    setCopied(true);
  };
  return html`<button type="button" class="quiet" onClick=${copy}>${isCopied ? "Copied" : "Copy"}</button>`;
}

function Branches({ node }) {
  const ids = branches(tree.value, node);
  if (ids.length < 2) return null;
  const index = ids.indexOf(node.id);
  const step = (by, label, sign) => html`
    <button type="button" class="quiet" aria-label=${label} disabled=${ids[index + by] === undefined} onClick=${() => showBranch(ids[index + by])}>
      ${sign}
    </button>
  `;
  return html`
    <span class="branches" role="group" aria-label="Branches">
      ${step(-1, "Previous branch", "‹")} <span>${index + 1} / ${ids.length}</span> ${step(1, "Next branch", "›")}
    </span>
  `;
}
