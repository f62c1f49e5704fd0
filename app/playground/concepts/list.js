// All concepts, with a field to filter them. Browsers skip the layout of rows that are out of sight
// (content-visibility in concepts.css), so that thousands of rows scroll smoothly.
import { html } from "../html.js";
import { matches } from "../parts/concept_picker.js";
import { ErrorBox } from "../parts/errors.js";
import { countText } from "../parts/numbers.js";
import { concepts, listError, listing, loadConcepts, nameIn, nameOf } from "../state/concepts.js";
import { addressOf } from "../state/route.js";
import { Component } from "../vendor/preact.js";
import { useEffect, useState } from "../vendor/preact-hooks.js";

export function ConceptList({ current }) {
  const [text, setText] = useState("");
  const found = matches(text);
  const count = useGrowing(found.length);
  return html`
    <nav class="concept-list" aria-label="Concepts">
      <div class="actions">
        <a class="button primary" href=${addressOf("new-concept")}>New concept</a>
        <a class="button" href=${addressOf("import-vectors")}>Import vectors</a>
      </div>
      <input type="search" aria-label="Filter concepts" placeholder="Filter ${concepts.value.length} concepts" value=${text} onInput=${(event) => setText(event.target.value)} />
      <${ErrorBox} error=${listError.value} onRetry=${loadConcepts} />
      <ul>
        ${found.slice(0, count).map((concept) => html`<${Row} key=${concept.id} concept=${concept} isCurrent=${concept.id === current} />`)}
      </ul>
      ${found.length === 0 && listing.value && html`<p class="note">No concept found.</p>`}
      <${Problems} problems=${listing.value?.problems ?? []} />
    </nav>
  `;
}

const STEP = 100;

/** A count that reaches `wanted` in steps, one for each frame: a thousand rows at once would take too long. */
function useGrowing(wanted) {
  const [count, setCount] = useState(STEP);
  useEffect(() => {
    if (count >= wanted) return undefined;
    const frame = requestAnimationFrame(() => setCount(count + STEP));
    return () => cancelAnimationFrame(frame);
  }, [count, wanted]);
  return Math.min(count, wanted);
}

class Row extends Component {
  shouldComponentUpdate({ concept, isCurrent }) {
    const before = this.props.concept;
    return (
      isCurrent !== this.props.isCurrent ||
      concept.state !== before.state ||
      concept.progress !== before.progress ||
      concept.description !== before.description
    );
  }

  render({ concept, isCurrent }) {
    const { id, description } = concept;
    return html`
      <li>
        <a href=${addressOf("concepts", nameIn(id))} aria-current=${isCurrent ? "page" : undefined}>
          <span class="row-name">${nameOf(id)} <${StateBadge} concept=${concept} /></span>
          <span class="row-text">${description}</span>
        </a>
      </li>
    `;
  }
}

/** The state in one word; nothing for concepts that are ready. */
export function StateBadge({ concept }) {
  const { state, progress } = concept;
  if (state === "ready") return null;
  const isRunning = state === "training" || state === "measuring";
  return html`<span class="badge ${state}">${isRunning ? `${state} ${Math.round(progress * 100)} %` : state}</span>`;
}

function Problems({ problems }) {
  if (problems.length === 0) return null;
  return html`
    <details class="group">
      <summary>${countText(problems.length, "file")} that cannot be used</summary>
      <ul>${problems.map(({ file, reason }) => html`<li key=${file} class="note"><code>${file}</code>: ${reason}</li>`)}</ul>
    </details>
  `;
}
