// What the page asks the server for when it opens.
import { listModels } from "../api/server.js";
import { signal } from "../vendor/signals-core.js";
import { concepts, loadConcepts } from "./concepts.js";
import { steerConcepts } from "./concept_choice.js";
import { model, models } from "./settings.js";

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
  if (steerConcepts.ids.length === 0) chooseFirst();
}

/** A server lists a model once it is loaded, so others may have come since. */
export async function refreshModels() {
  const known = await listModels().catch(() => models.value);
  if (known.join() !== models.value.join()) models.value = known;
}

// A shipped concept whose effect shows in one sentence about the prompt with which the page begins.
const EXAMPLE = { id: "_worker/sentiment", strength: -1 };

/** A concept to begin with: the example, else one that is trained, else any. */
function chooseFirst() {
  const all = concepts.value;
  if (all.some((concept) => concept.id === EXAMPLE.id)) return steerConcepts.add(EXAMPLE.id, EXAMPLE.strength);
  const first = all.find((concept) => concept.state === "ready") ?? all[0];
  if (first) steerConcepts.add(first.id);
}
