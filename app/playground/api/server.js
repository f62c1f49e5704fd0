// The server's other routes, one function each.
import { readJson, send } from "./client.js";

export const listModels = async () => (await readJson("models")).data.map((model) => model.id);

export const tokenize = (model, prompt) =>
  readJson("tokenize", { method: "POST", json: { model, prompt, tokens: true, token_ids: true } });

export const detokenize = async (model, ids) =>
  (await readJson("detokenize", { method: "POST", json: { model, token_ids: ids } })).result;

/** All concepts, with their states on the model. */
export const listConcepts = (model) => readJson(`steering_concepts?${new URLSearchParams({ model })}`);

/** The concept, with its report on the model. */
export const readConcept = (id, model) => readJson(`${pathOf(id)}?${new URLSearchParams({ model })}`);

/** The concept's pairs: `{ positive, negative, prompt }`. */
export const readExamples = async (id) => (await readJson(`${pathOf(id)}?examples=true`)).examples;

export const createConcept = (concept) => readJson("steering_concepts", { method: "POST", json: concept });

export const deleteConcept = (id) => readJson(pathOf(id), { method: "DELETE" });

/** The concept's vectors on the model as a Blob: a safetensors file. */
export const exportVectors = async (id, model) =>
  (await send(`${pathOf(id)}/vectors?${new URLSearchParams({ model })}`)).blob();

/** Makes a concept from a file with vectors for the model. */
export function importVectors(file, name, description, model) {
  const query = new URLSearchParams(Object.entries({ name, description, model }).filter(([, value]) => value));
  const headers = { "Content-Type": "application/octet-stream" };
  return readJson(`steering_concepts/import?${query}`, { method: "POST", body: file, headers });
}

function pathOf(id) {
  return `steering_concepts/${id}`;
}
