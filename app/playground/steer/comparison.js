// Side by side: the same prompt without and with steering. The state and what changes it.
import { Answer } from "../answer/answer.js";
import { Job } from "../answer/job.js";
import { run } from "../answer/run.js";
import { hasSameAnswer } from "../request/current.js";
import { announce } from "../state/announcements.js";
import { watchConcepts } from "../state/concepts.js";
import { steerConcepts } from "../state/concept_choice.js";
import { signal } from "../vendor/signals-core.js";
import { singleRequest } from "./single.js";

/** `{ answer, request, concepts }` of each side, or null. */
export const plain = signal(null);
export const steered = signal(null);

export const job = new Job();

/** Asks both sides. The plain side is kept if it is what the request would give again. */
export function compare(prompt) {
  return job.start(async (abort) => {
    watchConcepts();
    const chosen = steerConcepts.list.value;
    const plainRequest = singleRequest(prompt, chosen, { isSteered: false });
    const isKept = plain.value?.answer.status === "done" && hasSameAnswer(plain.value.request, plainRequest);
    await Promise.all([
      isKept ? null : ask(plain, plainRequest, [], abort),
      chosen.length ? ask(steered, singleRequest(prompt, chosen), chosen, abort) : (steered.value = null),
    ]);
    if (!abort.aborted) announce("The answers are complete.");
  });
}

function ask(side, request, concepts, abort) {
  const answer = new Answer();
  side.value = { answer, request, concepts };
  return run(request, [answer], abort);
}
