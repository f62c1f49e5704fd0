// A modal dialog: the browser's own <dialog>, which keeps the focus inside and closes on Escape.
import { html } from "../html.js";
import { useEffect, useId, useRef } from "../vendor/preact-hooks.js";

export function Dialog({ title, onClose, isWide, children }) {
  const ref = useRef();
  const heading = useId();
  useEffect(() => {
    const dialog = ref.current;
    dialog.showModal();
    return () => dialog.close();
  }, []);
  const cancel = (event) => {
    event.preventDefault(); // the owner removes the dialog
    onClose();
  };
  return html`
    <dialog ref=${ref} class=${isWide ? "wide" : ""} aria-labelledby=${heading} onCancel=${cancel}>
      <header>
        <h2 id=${heading}>${title}</h2>
        <button type="button" class="quiet" aria-label="Close" onClick=${onClose}>✕</button>
      </header>
      ${children}
    </dialog>
  `;
}
