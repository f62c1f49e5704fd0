// Makes a concept from a file with vectors.
import { importVectors } from "../api/server.js";
import { html } from "../html.js";
import { ErrorBox } from "../parts/errors.js";
import { loadConcepts, nameIn } from "../state/concepts.js";
import { announce } from "../state/announcements.js";
import { go, route } from "../state/route.js";
import { model } from "../state/settings.js";
import { useState } from "../vendor/preact-hooks.js";

export function VectorImport() {
  const [file, setFile] = useState(null);
  const [name, setName] = useState("");
  const [description, setDescription] = useState("");
  const [error, setError] = useState(null);
  const [isSending, setSending] = useState(false);
  const submit = async (event) => {
    event.preventDefault();
    setSending(true);
    setError(null);
    try {
      const concept = await importVectors(file, name.trim(), description.trim(), model.value);
      await loadConcepts();
      announce(`${nameIn(concept.id)} is imported.`);
      if (route.value.view === "import-vectors") go("concepts", nameIn(concept.id));
    } catch (failure) {
      setError(failure);
    }
    setSending(false);
  };
  return html`
    <form class="editor" onSubmit=${submit}>
      <h2>Import vectors</h2>
      <p class="note">
        A safetensors file of this or another server, or a GGUF control vector as llama.cpp, repeng and EasySteer write
        it. It must fit the model.
      </p>
      <label class="field file">File <input type="file" accept=".safetensors,.gguf" onChange=${(event) => setFile(event.target.files[0])} /></label>
      <label class="field">
        Name
        <input value=${name} maxlength="64" pattern="[a-zA-Z0-9_\\-]+" title="Letters, digits, - and _" placeholder="the name in the file" onInput=${(event) => setName(event.target.value)} />
      </label>
      <label class="field">
        Description
        <input value=${description} maxlength="1000" placeholder="the one in the file" onInput=${(event) => setDescription(event.target.value)} />
      </label>
      <${ErrorBox} error=${error} />
      <div class="actions">
        <button type="submit" class="primary" disabled=${!file || isSending}>${isSending ? "Importing…" : "Import"}</button>
      </div>
    </form>
  `;
}
