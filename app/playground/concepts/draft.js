// The concept that is being written, and its creation.
import { createConcept } from "../api/server.js";
import { announce } from "../state/announcements.js";
import { byId, keepWatching, loadConcepts, nameOf, stopWatching } from "../state/concepts.js";
import { go } from "../state/route.js";
import { computed, signal } from "../vendor/signals-core.js";
import { parsePairs } from "./pairs.js";

const EMPTY_PAIR = { positive: "", negative: "", prompt: "" };
const EMPTY = { name: "", description: "", pairs: [EMPTY_PAIR, EMPTY_PAIR, EMPTY_PAIR] };

export const draft = signal(EMPTY);
export const creationError = signal(null);
export const isSending = signal(false);

export const filled = computed(() => draft.value.pairs.filter((pair) => pair.positive.trim() || pair.negative.trim()));

/** Why the draft cannot be sent yet, or "". */
export const obstacle = computed(() => {
  if (!/^[a-zA-Z0-9-_]{1,64}$/.test(draft.value.name)) return "Give it a name of letters, digits, - and _.";
  if (filled.value.length === 0) return "Write at least one pair.";
  const half = filled.value.findIndex((pair) => !pair.positive.trim() || !pair.negative.trim());
  if (half >= 0) return "One pair has only one text.";
  return filled.value.some((pair) => pair.positive === pair.negative) ? "One pair has the same text twice." : "";
});

export function change(fields) {
  draft.value = { ...draft.value, ...fields };
}

export function changePair(index, fields) {
  change({ pairs: draft.value.pairs.map((pair, each) => (each === index ? { ...pair, ...fields } : pair)) });
}

export function addPair() {
  change({ pairs: [...draft.value.pairs, EMPTY_PAIR] });
}

export function removePair(index) {
  change({ pairs: draft.value.pairs.filter((_, each) => each !== index) });
}

/** Adds the pairs of a text. Name and description are taken from it only if the draft has none. */
export async function importText(text) {
  const found = await parsePairs(text);
  const { name, description } = draft.value;
  change({
    name: name || (found.name ?? ""),
    description: description || (found.description ?? ""),
    pairs: [...filled.value, ...found.pairs],
  });
  return found.pairs.length;
}

/** Begins a draft with the pairs of another concept. */
export function startFrom({ description, pairs }) {
  draft.value = { name: "", description, pairs };
  creationError.value = null;
}

export function clearDraft() {
  draft.value = EMPTY;
  creationError.value = null;
}

/** Sends the draft. As soon as the server lists the concept, its page shows how the training goes. */
export async function create() {
  const { name, description } = draft.value;
  const id = `_worker/${name}`;
  let isShown = byId.value.has(id); // then it is not new, and the server answers at once
  isSending.value = true;
  creationError.value = null;
  keepWatching((listed) => {
    if (isShown || !listed.has(id)) return;
    isShown = true;
    go("concepts", name);
  });
  try {
    const concept = await createConcept({ name, description, examples: filled.value.map(toExample) });
    await loadConcepts();
    go("concepts", name);
    announce(`${nameOf(concept.id)} is trained. ${concept.report?.summary ?? ""}`);
  } catch (error) {
    creationError.value = error;
    go("new-concept");
  } finally {
    stopWatching();
    isSending.value = false;
  }
}

const toExample = ({ positive, negative, prompt }) => (prompt?.trim() ? { positive, negative, prompt } : { positive, negative });
