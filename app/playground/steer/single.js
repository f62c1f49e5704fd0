// Requests of the steering view: one user message, one answer.
import { currentRequest } from "../request/current.js";

export function singleRequest(prompt, chosen, { changes, isSteered } = {}) {
  const turns = [{ role: "user", content: prompt }];
  return currentRequest(turns, chosen, { changes: { ...changes, n: undefined }, isSteered });
}
