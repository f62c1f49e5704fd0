// The request that the current settings make.
import * as settings from "../state/settings.js";
import { chatBody } from "./body.js";

/** The settings as plain values, with changes. */
export function currentSettings(changes = {}) {
  const { model, systemMessage, parameters, chosen, condition, readsChosen } = settings;
  const now = { model, systemMessage, parameters, chosen, condition, readsChosen };
  const values = Object.entries(now).map(([name, signal]) => [name, signal.value]);
  return { ...Object.fromEntries(values), ...changes };
}

/** `{ body, nice }` for these turns. */
export function currentRequest(turns, { changes, isSteered } = {}) {
  const values = currentSettings(changes);
  return { body: chatBody(values, turns, { isSteered }), nice: values.parameters.nice ?? false };
}
