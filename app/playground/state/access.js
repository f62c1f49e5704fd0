// The access token. It lives in this tab's session only: closing the tab forgets it.
import { signal } from "../vendor/signals-core.js";

const KEY = "tiller-access-token";

export const token = signal(sessionStorage.getItem(KEY) ?? "");

/** The open question for a token: `{ message, answer }`. `answer(token)`, or `answer("")` to give up. */
export const question = signal(null);

let asked = null;

/** Asks for a token, once for all requests that wait. Resolves to whether there is a new one. */
export function askForToken(message) {
  asked ??= new Promise((resolve) => {
    question.value = {
      message,
      answer(given) {
        question.value = null;
        asked = null;
        if (given) keepToken(given);
        resolve(Boolean(given));
      },
    };
  });
  return asked;
}

export function keepToken(given) {
  token.value = given;
  if (given) sessionStorage.setItem(KEY, given);
  else sessionStorage.removeItem(KEY);
}
