// A choice of a few values side by side. Radio buttons underneath, so keys and screen readers work.
import { html } from "../html.js";
import { useId } from "../vendor/preact-hooks.js";

/** `options`: `[value, label]` pairs. */
export function Segmented({ label, options, value, onChange }) {
  const name = useId();
  return html`
    <fieldset class="segmented">
      <legend class="hidden">${label}</legend>
      ${options.map(
        ([each, text]) => html`
          <label key=${each}>
            <input type="radio" name=${name} checked=${each === value} onChange=${() => onChange(each)} />
            <span>${text}</span>
          </label>
        `,
      )}
    </fieldset>
  `;
}
