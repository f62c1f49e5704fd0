// Runs a chat request, and fills one Answer for each of its choices.
import { chat } from "../api/chat.js";

/** Never throws: a failure ends the answers with their error. `request`: `{ body, nice }`. */
export async function run({ body, nice }, answers, signal) {
  try {
    for await (const chunk of chat(body, { nice, signal })) {
      for (const choice of chunk.choices) answers[choice.index].take(choice, chunk);
      if (chunk.usage) answers[0].usage = chunk.usage;
    }
    end(answers, "done");
  } catch (error) {
    if (error.name === "AbortError") end(answers, "stopped");
    else end(answers, "failed", error);
  }
}

function end(answers, status, error) {
  for (const answer of answers) if (answer.isOpen) answer.end(status, error);
}
