// What the next request will say: model, system message, parameters, concepts and strengths.
import { computed, signal } from "../vendor/signals-core.js";

// At temperature 0, answers differ by their steering and by nothing else.
const INITIAL = { max_tokens: 128, temperature: 0, stream: true, logprobs: true, top_logprobs: 5 };

export const models = signal([]);
export const model = signal("");
export const systemMessage = signal("");

/** Name of a parameter: its value. */
export const parameters = signal(INITIAL);

/** The chosen concepts, in the order in which they were chosen: `{ id, strength }`. */
export const chosen = signal([]);

/** `{ concept, above, below }`, or null. */
export const condition = signal(null);

/** Whether answers report how strongly the chosen concepts are present. */
export const readsChosen = signal(true);

export const isChanged = computed(() => parameters.value !== INITIAL);

export function setParameter(name, value) {
  const { [name]: _, ...others } = parameters.value;
  parameters.value = value === undefined ? others : { ...others, [name]: value };
}

export function resetParameters() {
  parameters.value = INITIAL;
}

export function addConcept(id, strength = 1) {
  if (chosen.value.some((concept) => concept.id === id)) return;
  chosen.value = [...chosen.value, { id, strength }];
}

export function removeConcept(id) {
  chosen.value = chosen.value.filter((concept) => concept.id !== id);
}

export function setStrength(id, strength) {
  chosen.value = chosen.value.map((concept) => (concept.id === id ? { id, strength } : concept));
}
