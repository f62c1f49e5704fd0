// The body of a chat request, from the settings. Pure functions.

const STEERING_FIELDS = ["steering_scope", "steering_mode"];
const DEFAULTS = { steering_scope: "all", steering_mode: "add", stream: false, logprobs: false };

/**
 * `settings`: model, systemMessage, parameters, condition, readsChosen, alsoRead, as in state/settings.js, and `chosen`: the
 * concepts, as in state/concept_choice.js. A parameter that is undefined is left out.
 * `turns`: user and assistant messages. `isSteered`: false leaves out the steering, but not the readings.
 */
export function chatBody(settings, turns, { isSteered = true } = {}) {
  const { nice: _, ...parameters } = settings.parameters; // a query parameter
  const system = settings.systemMessage ? [{ role: "system", content: settings.systemMessage }] : [];
  const isSteering = isSteered && settings.chosen.length > 0;
  const plain = Object.entries(parameters).filter(
    ([name, value]) => value !== undefined && value !== DEFAULTS[name] && (isSteering || !STEERING_FIELDS.includes(name)),
  );
  return {
    model: settings.model,
    messages: [...system, ...turns],
    ...Object.fromEntries(plain),
    ...(parameters.stream ? { stream_options: { include_usage: true } } : {}),
    ...(isSteering ? steeringFields(settings) : {}),
    ...readingFields(settings),
  };
}

function steeringFields({ chosen, condition }) {
  const ids = chosen.map((concept) => concept.id);
  const strengths = Object.fromEntries(chosen.map(({ id, strength }) => [id, strength]));
  return {
    steering_concepts: ids,
    steering_strength: ids.length === 1 ? chosen[0].strength : strengths,
    ...(condition ? { steering_when: conditionField(condition) } : {}),
  };
}

function conditionField({ concept, above, below }) {
  return {
    concept,
    ...(above === undefined ? {} : { above }),
    ...(below === undefined ? {} : { below }),
  };
}

function readingFields({ chosen, readsChosen, alsoRead }) {
  const read = new Set([...(readsChosen ? chosen.map((concept) => concept.id) : []), ...alsoRead]);
  return read.size === 0 ? {} : { steering_readings: [...read] };
}
