// The chat: turns, and a field for the next one.
import { ColourChoice } from "../answer/colour_choice.js";
import { html } from "../html.js";
import { Settings } from "../parts/settings.js";
import { CopyRequest } from "../request/copy.js";
import { currentRequest } from "../request/current.js";
import { chatConcepts } from "../state/concept_choice.js";
import { signal } from "../vendor/signals-core.js";
import { clear, job, say, tree } from "./conversation.js";
import { useFollowing } from "./follow.js";
import { path, turnsTo } from "./tree.js";
import { COMPOSER, Turn } from "./turn.js";

const draft = signal("");

export function ChatView() {
  const turns = path(tree.value);
  const answers = turns.filter((node) => node.answer).map((node) => node.answer);
  const { list, end } = useFollowing(turns.at(-1)?.id, () => job.isRunning.value);
  return html`
    <div class="work chat">
      <section class="conversation" aria-label="Conversation">
        ${turns.length > 0
          ? html`
              <div class="actions">
                <${ColourChoice} answers=${answers} />
                <button type="button" class="quiet" onClick=${clear}>New conversation</button>
              </div>
              <ol class="turns" ref=${list}>
                ${turns.map((node) => html`<${Turn} key=${node.id} node=${node} />`)}
              </ol>
              <div class="end" ref=${end}></div>
            `
          : html`<p class="empty">Ask something. The settings apply to each next answer, and you can change them at any time.</p>`}
        <${Composer} last=${turns.at(-1)} />
      </section>
      <aside aria-label="Settings"><${Settings} concepts=${chatConcepts} /></aside>
    </div>
  `;
}

function Composer({ last }) {
  const isRunning = job.isRunning.value;
  const send = (event) => {
    event.preventDefault();
    if (isRunning || !draft.value.trim()) return;
    say(draft.value);
    draft.value = "";
  };
  const onKeyDown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
    if (event.key === "Escape") job.stop();
  };
  return html`
    <form class="composer" onSubmit=${send}>
      <textarea
        id=${COMPOSER}
        rows="1"
        aria-label="Your message"
        placeholder="Your message"
        value=${draft}
        onInput=${(event) => (draft.value = event.target.value)}
        onKeyDown=${onKeyDown}
      ></textarea>
      ${isRunning
        ? html`<button type="button" class="primary" onClick=${() => job.stop()}>Stop</button>`
        : html`<button type="submit" class="primary" disabled=${!draft.value.trim()}>Send</button>`}
      <${CopyRequest} request=${() => requestToCopy(last)} />
    </form>
  `;
}

/** The request that a click on Send would make; without a draft, the one that made the last answer. */
function requestToCopy(last) {
  const before = last ? turnsTo(tree.value, last.id) : [];
  const hasDraft = draft.value.trim() !== "";
  if (last && !hasDraft) return currentRequest(last.answer ? before.slice(0, -1) : before, chatConcepts.list.value);
  const turn = { role: "user", content: hasDraft ? draft.value : "Hello!" };
  return currentRequest([...before, turn], chatConcepts.list.value);
}
