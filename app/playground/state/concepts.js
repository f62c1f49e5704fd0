// The steering concepts that the server has, and what it says about each for the chosen model.
import { computed, signal } from "../vendor/signals-core.js";
import { listConcepts, readConcept } from "../api/server.js";
import { model } from "./settings.js";

const IN_PROGRESS = new Set(["training", "measuring"]);
const POLL_MS = 1000;

/** The list as the server gives it: `{ data, problems }`, or null before it has come. */
export const listing = signal(null);
export const listError = signal(null);

export const concepts = computed(() => listing.value?.data ?? []);

export const byId = computed(() => new Map(concepts.value.map((concept) => [concept.id, concept])));

/** Id: the concept with its report. Filled by `loadDetail`. */
export const details = signal(new Map());

let timer = null;
let watcher = null; // called after each reading, which goes on until there is none

/** Reads the list, and reads it again as long as a concept is in training. */
export async function loadConcepts() {
  clearTimeout(timer);
  if (!model.value) return; // the page does not know the models yet, and reads the list once it does
  try {
    listing.value = await listConcepts(model.value);
    listError.value = null;
  } catch (error) {
    listError.value = error;
    return;
  }
  forgetOldDetails();
  watcher?.(byId.value);
  if (watcher || concepts.value.some((concept) => IN_PROGRESS.has(concept.state))) watchConcepts();
}

/** Reads the list again soon: a request may have started a training. */
export function watchConcepts() {
  clearTimeout(timer);
  timer = setTimeout(loadConcepts, POLL_MS);
}

/** Reads the list again and again, and calls `onListed(byId)` each time, until `stopWatching(onListed)`. */
export function keepWatching(onListed) {
  watcher = onListed;
  watchConcepts();
}

export function stopWatching(onListed) {
  if (watcher === onListed) watcher = null;
}

export async function loadDetail(id) {
  const asked = model.value;
  const detail = await readConcept(id, asked);
  if (asked === model.value) details.value = new Map(details.value).set(detail.id, detail);
  return detail;
}

/** Chooses the model that answers, and reads what the concepts are on it. */
export function chooseModel(name) {
  model.value = name;
  details.value = new Map();
  return loadConcepts();
}

/** A detail is old if the state of its concept has changed since. */
function forgetOldDetails() {
  const kept = [...details.value].filter(([id, detail]) => byId.value.get(id)?.state === detail.state);
  if (kept.length < details.value.size) details.value = new Map(kept);
}

/** The concept's name, as it is in addresses and file names. */
export const nameIn = (id) => id.replace(/^_worker\//, "");

const HASH = /^[0-9a-f]{64}$/;

/** What people call the concept: its name, or the beginning of its hash. */
export function nameOf(id) {
  const name = nameIn(id);
  return HASH.test(name) ? `${name.slice(0, 8)}…` : name;
}

/** The strengths that the concept allows, `[lowest, highest]`, or null if they are not known yet. */
export function limitsOf(id) {
  const report = details.value.get(id)?.report;
  return report ? [-report.max_down_strength, report.max_strength] : null;
}
