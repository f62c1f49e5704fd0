// A request as code that runs as it is: one function for each language. The access token is never part of it;
// the code reads it from the environment.
import { alephAlpha } from "./snippets/aleph_alpha.js";
import { curl } from "./snippets/curl.js";
import { javaScriptFetch } from "./snippets/fetch.js";
import { javaScriptOpenai } from "./snippets/openai_js.js";
import { pythonOpenai } from "./snippets/openai_python.js";

const WRITERS = {
  curl,
  "python-openai": pythonOpenai,
  "python-aleph-alpha": alephAlpha,
  "javascript-openai": javaScriptOpenai,
  "javascript-fetch": javaScriptFetch,
};

export const LANGUAGES = [
  ["curl", "curl"],
  ["python-openai", "Python, openai"],
  ["python-aleph-alpha", "Python, aleph-alpha-client"],
  ["javascript-openai", "JavaScript, openai"],
  ["javascript-fetch", "JavaScript, fetch"],
];

const DETAILS = ["logprobs", "top_logprobs", "steering_readings"];

/** `request`: `{ body, nice }`. `server`: `{ address, needsToken }`. */
export function snippet(language, { body, nice }, server, { isStreamed = false, hasDetails = false } = {}) {
  const { stream: _, stream_options: __, ...fields } = body;
  if (!hasDetails) for (const name of DETAILS) delete fields[name];
  return WRITERS[language]({ fields, nice, isStreamed, ...server });
}
