// The concept that is being written, and its creation.
import { createConcept } from "../api/server.js";
import { countText } from "../parts/numbers.js";
import { announce } from "../state/announcements.js";
import { byId, keepWatching, loadConcepts, nameOf, stopWatching } from "../state/concepts.js";
import { go, route } from "../state/route.js";
import { computed, signal } from "../vendor/signals-core.js";
import { parsePairs } from "./pairs.js";

const EMPTY_PAIR = { positive: "", negative: "", prompt: "" };
const EMPTY = { name: "", description: "", pairs: [EMPTY_PAIR, EMPTY_PAIR, EMPTY_PAIR] };

const KEY = "tiller-draft"; // kept in the tab's session, so that reloading the page loses no pairs

export const draft = signal(JSON.parse(sessionStorage.getItem(KEY)) ?? EMPTY);
/** The draft that the present one has replaced, or null. */
export const replaced = signal(null);
export const creationError = signal(null);

const sending = signal(null); // the draft that is being sent
export const isSending = computed(() => sending.value !== null);

export const filled = computed(() => draft.value.pairs.filter((pair) => pair.positive.trim() || pair.negative.trim()));

addEventListener("pagehide", () => {
  try {
    sessionStorage.setItem(KEY, JSON.stringify(draft.value));
  } catch {
    sessionStorage.removeItem(KEY); // it is too large for the browser
  }
});

export const hasBadName = computed(() => !/^[a-zA-Z0-9-_]{0,64}$/.test(draft.value.name));

/** Why the draft cannot be sent yet, or "". */
export const obstacle = computed(() => {
  if (hasBadName.value) return "The name may have letters, digits, - and _ only.";
  if (!draft.value.name) return "Give it a name.";
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

/** What became of the last text: `{ done }` or `{ problem }`, in words. */
export const imported = signal({});

/** Adds the pairs of a text. Returns whether it has some. */
export async function importText(text) {
  try {
    imported.value = { done: `${countText(await addPairsOf(text), "pair")} added.` };
    announce(imported.value.done);
  } catch (error) {
    imported.value = { problem: error.message };
  }
  return Boolean(imported.value.done);
}

/** Name and description are taken from the text only if the draft has none. */
async function addPairsOf(text) {
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
  replace({ name: "", description, pairs });
}

export function clearDraft() {
  replace(EMPTY);
}

/** Brings the replaced draft back. The present one takes its place, so nothing is lost. */
export function swapDrafts() {
  replace(replaced.value);
}

function replace(next) {
  replaced.value = hasContent(draft.value) ? draft.value : null;
  draft.value = next;
  creationError.value = null;
  imported.value = {};
}

const hasContent = ({ name, description, pairs }) => Boolean(name || description || pairs.some((pair) => pair.positive || pair.negative));

/** Sends the draft. As soon as the server trains the concept, the editor is free for another one. */
export async function create() {
  const sent = draft.value;
  const { name, description } = sent;
  const id = `_worker/${name}`;
  let isTaken = byId.value.has(id); // then it is not new, and the server answers at once
  const onListed = (listed) => {
    if (!isTaken && listed.has(id)) leaveEditor();
    isTaken ||= listed.has(id);
  };
  const leaveEditor = () => {
    if (sending.value !== sent) return;
    sending.value = null;
    if (draft.value === sent) draft.value = EMPTY;
    if (isShown("new-concept")) go("concepts", name);
  };
  sending.value = sent;
  creationError.value = null;
  keepWatching(onListed);
  try {
    const concept = await createConcept({ name, description, examples: filled.value.map(toExample) });
    await loadConcepts();
    leaveEditor();
    announce(`${nameOf(concept.id)} is trained. ${concept.report?.summary ?? ""}`);
  } catch (error) {
    if (draft.value !== sent) replace(sent);
    creationError.value = error;
    announce(`${name} could not be created: ${error.message}`);
    if (isShown("concepts", name)) go("new-concept");
  } finally {
    stopWatching(onListed);
    if (sending.value === sent) sending.value = null;
  }
}

/** People may look at something else meanwhile. Then the page must not take them away from it. */
const isShown = (view, argument = "") => route.value.view === view && route.value.argument === argument;

const toExample = ({ positive, negative, prompt }) => (prompt?.trim() ? { positive, negative, prompt } : { positive, negative });
