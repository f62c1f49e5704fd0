// POST /chat/completions: the chunks of an answer.
import { errorOf, send, ServerError } from "./client.js";
import { eventsOf } from "./events.js";

/** Yields the chunks of an answer. An answer that is not streamed comes as one chunk per choice and the usage. */
export async function* chat(body, { nice = false, signal } = {}) {
  const path = nice ? "chat/completions?nice=true" : "chat/completions";
  const response = await send(path, { method: "POST", json: body, signal });
  if (body.stream) yield* streamed(response);
  else yield* whole(await response.json());
}

// An error within a stream has a code and no status: those that are no fault of the server.
const STATUS_OF = { UNAVAILABLE: 503, REQUEST_TIMEOUT: 408 };

async function* streamed(response) {
  try {
    for await (const data of eventsOf(response)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw errorOf(chunk, { status: STATUS_OF[chunk.error.code] ?? 500 });
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ServerError || error.name === "AbortError") throw error;
  }
  throw new ServerError("The connection was lost before the answer was complete.");
}

function* whole(answer) {
  const { choices, usage, ...common } = answer;
  for (const { message, ...choice } of choices) {
    yield { ...common, choices: [{ ...choice, delta: { content: message.content } }] };
  }
  yield { choices: [], usage };
}
