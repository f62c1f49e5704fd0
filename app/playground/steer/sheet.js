// The contact sheet: short answers to one prompt at each strength of one concept. The state and what changes it.
import { Answer } from "../answer/answer.js";
import { Job } from "../answer/job.js";
import { run } from "../answer/run.js";
import { countText } from "../parts/numbers.js";
import { announce } from "../state/announcements.js";
import { nameOf, watchConcepts } from "../state/concepts.js";
import { steerConcepts } from "../state/concept_choice.js";
import { signal } from "../vendor/signals-core.js";
import { singleRequest } from "./single.js";

/** The strengths of a sheet, by the name of their range. */
export const RANGES = {
  "−2 to +2": [-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2],
  "0 to +2": [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2],
  "−2 to 0": [-2, -1.75, -1.5, -1.25, -1, -0.75, -0.5, -0.25, 0],
};

const TRIES = 8;
const BUSY = new Set([429, 503]);

/** `{ concept, cells: [{ strength, answer }] }`, or null. */
export const sheet = signal(null);
export const answerLength = signal(48);
/** A key of RANGES. */
export const range = signal("−2 to +2");

export const job = new Job();

/** Asks for all answers at the same time: the server computes them together. */
export function fillSheet(prompt, concept) {
  return job.start(async (abort) => {
    watchConcepts();
    const strengths = RANGES[range.value];
    sheet.value = { concept, cells: strengths.map((strength) => ({ strength, answer: new Answer() })) };
    await Promise.all(strengths.map((_, index) => fill(prompt, index, abort)));
    if (!abort.aborted) announce(`The contact sheet of ${nameOf(concept)} is complete.`);
  });
}

/** Asks again after a while if the server has no room: a token may allow few requests at the same time. */
async function fill(prompt, index, abort) {
  const { concept, cells } = sheet.value;
  const request = requestAt(prompt, concept, cells[index].strength);
  for (let tries = 1; ; tries += 1) {
    const { answer } = sheet.value.cells[index];
    await run(request, [answer], abort);
    const isBusy = BUSY.has(answer.error?.status) && answer.text === "";
    if (!isBusy || tries === TRIES || abort.aborted) return;
    const seconds = answer.error.retryAfter ?? 1;
    const next = new Answer();
    next.notice = `The server has no room now. Asking again in ${countText(seconds, "second")}…`;
    put(index, next);
    await wait(seconds * 1000, abort);
    if (abort.aborted) return next.end("stopped");
    next.notice = "";
    next.changed();
  }
}

function put(index, answer) {
  const cells = sheet.value.cells.map((cell, each) => (each === index ? { ...cell, answer } : cell));
  sheet.value = { ...sheet.value, cells };
}

/** The request with another strength of this concept. The other chosen concepts keep theirs. */
export function requestAt(prompt, concept, strength) {
  const others = steerConcepts.list.value.filter((each) => each.id !== concept);
  return singleRequest(prompt, [...others, { id: concept, strength }], {
    changes: { max_tokens: answerLength.value },
  });
}

function wait(milliseconds, abort) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    abort.addEventListener("abort", () => (clearTimeout(timer), resolve()));
  });
}
