// What the page asks the server for when it opens.
import { listModels } from "../api/server.js";
import { signal } from "../vendor/signals-core.js";
import { concepts, loadConcepts } from "./concepts.js";
import { addConcept, chosen, model, models } from "./settings.js";

export const startError = signal(null);

export async function start() {
  try {
    models.value = await listModels();
    model.value ||= models.value[0] ?? "";
    startError.value = null;
  } catch (error) {
    startError.value = error;
    return;
  }
  await loadConcepts();
  if (chosen.value.length === 0) chooseFirst();
}

/** A concept to begin with: one that is trained, if there is one. */
function chooseFirst() {
  const wellKnown = concepts.value.find((concept) => concept.id === "_worker/sentiment");
  const first = wellKnown ?? concepts.value.find((concept) => concept.state === "ready") ?? concepts.value[0];
  if (first) addConcept(first.id);
}
