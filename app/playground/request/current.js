// The request that the current settings make.
import * as settings from "../state/settings.js";
import { chatBody } from "./body.js";

/** `{ body, nice }`. `chosen`: `{ id, strength }` of each concept. `changes`: parameters with other values. */
export function currentRequest(turns, chosen, { changes = {}, isSteered } = {}) {
  const { model, systemMessage, parameters, condition, readsChosen, alsoRead } = settings;
  const values = {
    model: model.value,
    systemMessage: systemMessage.value,
    parameters: { ...parameters.value, ...changes },
    condition: condition.value,
    readsChosen: readsChosen.value,
    alsoRead: alsoRead.value,
    chosen,
  };
  return { body: chatBody(values, turns, { isSteered }), nice: values.parameters.nice ?? false };
}
