// The conversation on the page, and what a person does with it.
import { Answer } from "../answer/answer.js";
import { Job } from "../answer/job.js";
import { run } from "../answer/run.js";
import { currentRequest, hasSameAnswer } from "../request/current.js";
import { announce } from "../state/announcements.js";
import { watchConcepts } from "../state/concepts.js";
import { chatConcepts } from "../state/concept_choice.js";
import { signal } from "../vendor/signals-core.js";
import { add, choose, EMPTY, path, turnsTo } from "./tree.js";

export const tree = signal(EMPTY);
export const job = new Job();

/** Sends a user turn at the end of the active branch. */
export function say(text) {
  const last = path(tree.value).at(-1);
  return sendTurn(last?.id ?? null, text);
}

/** Sends another text in the place of a user turn. Both are kept as branches. */
export function edit(node, text) {
  return sendTurn(node.parent, text);
}

function sendTurn(parent, text) {
  const { tree: next, ids } = add(tree.value, parent, [{ role: "user", text }]);
  tree.value = next;
  return answerTo(ids[0]);
}

/** Asks again for the answer to the same user turn. Both answers are kept as branches. */
export function regenerate(node) {
  return answerTo(node.parent, node);
}

/** The parameter `n` makes several answers at once: they are branches, too. `before`: the node to be replaced. */
function answerTo(userId, before = null) {
  const concepts = chatConcepts.list.value;
  const request = currentRequest(turnsTo(tree.value, userId), concepts);
  const answers = Array.from({ length: request.body.n ?? 1 }, () => new Answer());
  const isRepeat = before?.answer.status === "done" && hasSameAnswer(before.request, request);
  const contents = answers.map((answer) => ({ role: "assistant", answer, concepts, request, isRepeat }));
  tree.value = add(tree.value, userId, contents).tree;
  watchConcepts();
  return job.start(async (abort) => {
    await run(request, answers, abort);
    if (answers[0].status === "done") announce(`Answer complete: ${answers[0].text.slice(0, 500)}`);
  });
}

export function showBranch(id) {
  tree.value = choose(tree.value, id);
}

export function clear() {
  job.stop();
  tree.value = EMPTY;
}
