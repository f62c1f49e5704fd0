// Requests of the steering view: one user message, one answer.
import { currentRequest, currentSettings } from "../request/current.js";

export function singleRequest(prompt, { isSteered = true, ...changes } = {}) {
  const { n: _, ...parameters } = { ...currentSettings().parameters, ...changes.parameters };
  const turns = [{ role: "user", content: prompt }];
  return currentRequest(turns, { changes: { ...changes, parameters }, isSteered });
}
