// What went wrong, in words that say what to do.
import { html } from "../html.js";
import { capital, countText } from "./numbers.js";

const ADVICE = {
  0: "Is it running, and is the network up?",
  401: "Try again to give another access token.",
  408: "Try again.",
  500: "This is a fault of the server. Its log says more.",
  503: "Try again in a moment.",
};

const TITLES = {
  0: "No connection",
  400: "The server refused the request",
  401: "Access denied",
  404: "Not found",
  409: "This conflicts with what is there",
  413: "Too large",
  429: "Too many requests",
  500: "The server failed",
  503: "The server is busy or restarting",
};

/** `{ title, text }` of an error. */
export function describe(error) {
  const { status, code, retryAfter } = error;
  const title = TITLES[status] ?? `Error ${status ?? ""}`.trim();
  const advice = adviceFor(status, retryAfter, error.message);
  const sentence = /[.!?]$/.test(error.message) ? error.message : `${error.message}.`;
  return { title, text: `${capital(sentence)} ${advice}`.trim(), code };
}

function adviceFor(status, retryAfter, message) {
  if (/try again/i.test(message)) return "";
  return retryAfter ? `Try again in ${countText(retryAfter, "second")}.` : (ADVICE[status] ?? "");
}

export function ErrorBox({ error, onRetry }) {
  if (!error) return null;
  const { title, text, code } = describe(error);
  return html`
    <div class="error" role="alert">
      <strong>${title}</strong>
      <p>${text}${code && html` <code>${code}</code>`}</p>
      ${onRetry && html`<button type="button" onClick=${onRetry}>Try again</button>`}
    </div>
  `;
}
