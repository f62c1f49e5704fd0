// What the next request will say: model, system message, parameters. The concepts are in concept_choice.js.
import { computed, signal } from "../vendor/signals-core.js";

// At temperature 0, answers differ by their steering and by nothing else.
const INITIAL = { max_tokens: 96, temperature: 0, stream: true, logprobs: true, top_logprobs: 5 };

export const models = signal([]);
export const model = signal("");
export const systemMessage = signal("");

/** Name of a parameter: its value. */
export const parameters = signal(INITIAL);

/** `{ concept, above, below }`, or null. */
export const condition = signal(null);

/** Whether answers report how strongly the chosen concepts are present. */
export const readsChosen = signal(true);

/** The ids of other concepts whose presence answers report. */
export const alsoRead = signal([]);

export const isChanged = computed(() => parameters.value !== INITIAL);

export function setParameter(name, value) {
  const { [name]: _, ...others } = parameters.value;
  parameters.value = value === undefined ? others : { ...others, [name]: value };
}

export function resetParameters() {
  parameters.value = INITIAL;
}
