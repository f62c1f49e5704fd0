// Copies a text.

/** The clipboard needs HTTPS or a local address; elsewhere a selected text field has to do. */
export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = document.createElement("textarea");
  field.value = text;
  (document.querySelector("dialog[open]") ?? document.body).append(field); // outside a dialog, it gets no focus
  field.select();
  document.execCommand("copy");
  field.remove();
}
