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

/** Whether the second request can only have the answer of the first one. Above temperature 0, it has another one. */
export function hasSameAnswer(first, second) {
  return second.body.temperature === 0 && JSON.stringify(first) === JSON.stringify(second);
}
