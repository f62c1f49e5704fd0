// A text field with a list below it, to find a concept among many by typing: a combobox as ARIA describes it.
import { html } from "../html.js";
import { concepts, nameOf } from "../state/concepts.js";
import { useEffect, useId, useRef, useState } from "../vendor/preact-hooks.js";

const SHOWN = 50;

/** `without`: ids that the list leaves out. Calls `onPick(id)`. */
export function ConceptPicker({ label, placeholder, without = [], onPick }) {
  const id = useId();
  const list = useRef();
  const [text, setText] = useState("");
  const [isOpen, setOpen] = useState(false);
  const [active, setActive] = useState(0);
  const found = isOpen ? matches(text, without) : [];
  const shown = found.slice(0, SHOWN);
  useEffect(() => {
    list.current?.querySelector("[aria-selected=true]")?.scrollIntoView({ block: "nearest" });
  }, [active]);
  const open = (given) => {
    setText(given);
    setActive(0);
    setOpen(true);
  };
  const pick = (concept) => {
    setText("");
    setOpen(false);
    onPick(concept.id);
  };
  const onKeyDown = (event) => {
    const moved = { ArrowDown: active + 1, ArrowUp: active - 1 }[event.key];
    if (moved !== undefined) {
      event.preventDefault();
      if (isOpen) setActive(Math.max(0, Math.min(shown.length - 1, moved)));
      else open(text);
    } else if (event.key === "Enter" && shown[active]) {
      event.preventDefault();
      pick(shown[active]);
    } else if (event.key === "Escape" && isOpen) {
      event.stopPropagation();
      setOpen(false);
    }
  };
  return html`
    <div class="picker">
      <input
        type="text"
        role="combobox"
        autocomplete="off"
        aria-label=${label}
        aria-expanded=${isOpen}
        aria-controls=${`${id}-list`}
        aria-activedescendant=${shown[active] ? `${id}-${active}` : undefined}
        placeholder=${placeholder}
        value=${text}
        onInput=${(event) => open(event.target.value)}
        onClick=${() => open(text)}
        onBlur=${() => setOpen(false)}
        onKeyDown=${onKeyDown}
      />
      <ul id=${`${id}-list`} role="listbox" aria-label=${label} hidden=${!isOpen} ref=${list}>
        ${shown.map(
          (concept, index) => html`
            <li
              key=${concept.id}
              id=${`${id}-${index}`}
              role="option"
              aria-selected=${index === active}
              onPointerDown=${(event) => event.preventDefault() /* the field keeps the focus */}
              onClick=${() => pick(concept)}
            >
              <strong>${nameOf(concept.id)}</strong>
              <span>${concept.description}</span>
            </li>
          `,
        )}
        ${found.length === 0 && html`<li role="option" aria-disabled="true" aria-selected="false">No concept found</li>`}
        ${found.length > SHOWN &&
        html`<li role="option" aria-disabled="true" aria-selected="false">${found.length - SHOWN} more: type to find them</li>`}
      </ul>
    </div>
  `;
}

/** The concepts with this text in their name or description: those whose name begins with it come first. */
export function matches(text, without = []) {
  const wanted = text.trim().toLowerCase();
  const left = concepts.value.filter((concept) => !without.includes(concept.id));
  if (!wanted) return left;
  const rank = (concept) => {
    const name = nameOf(concept.id).toLowerCase();
    if (name.startsWith(wanted)) return 0;
    if (name.includes(wanted)) return 1;
    return concept.description.toLowerCase().includes(wanted) ? 2 : 3;
  };
  const ranked = left.map((concept) => [rank(concept), concept]).filter(([each]) => each < 3);
  return ranked.sort(([one], [other]) => one - other).map(([, concept]) => concept);
}
