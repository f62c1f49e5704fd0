// The control for one parameter of request/parameters.js, with its explanation.
import { html } from "../html.js";
import { parameters, setParameter } from "../state/settings.js";
import { useId, useState } from "../vendor/preact-hooks.js";
import { BiasControl } from "./bias.js";

export function Parameter({ parameter }) {
  const id = useId();
  const { name, kind, explain } = parameter;
  const value = parameters.value[name];
  const Control = CONTROLS[kind];
  const text = typeof explain === "string" ? explain : explain[value ?? parameter.choices[0]];
  const set = (given) => setParameter(name, given);
  return html`
    <div class="parameter ${kind}">
      <label for=${id}><code>${name}</code></label>
      <${Control} ...${{ id, parameter, value, set }} described=${`${id}-text`} />
      <p id=${`${id}-text`}>${text}</p>
    </div>
  `;
}

function NumberControl({ id, parameter, value, set, described }) {
  const { kind, min, max, unset } = parameter;
  const [text, setText] = useState(null); // what is typed, as long as it is no valid number
  const change = (event) => {
    const input = event.target;
    const isValid = input.validity.valid && !input.validity.badInput;
    setText(isValid ? null : input.value);
    if (isValid) set(input.value === "" ? undefined : Number(input.value));
  };
  const problem = text === null ? "" : `${rangeText(parameter)} Until then, ${value === undefined ? "none" : value} is sent.`;
  return html`
    <input
      type="number"
      id=${id}
      min=${min}
      max=${max}
      step=${kind === "integer" ? 1 : "any"}
      inputmode=${kind === "integer" ? "numeric" : "decimal"}
      placeholder=${unset}
      value=${text ?? value ?? ""}
      aria-invalid=${text !== null}
      aria-describedby=${problem ? `${id}-problem ${described}` : described}
      onInput=${change}
      onKeyDown=${(event) => stepWithArrows(event, parameter, value, set)}
    />
    ${problem && html`<p class="problem" id="${id}-problem" role="alert">${problem}</p>`}
  `;
}

function rangeText({ kind, min, max }) {
  const noun = kind === "integer" ? "a whole number" : "a number";
  return max === undefined ? `Give ${noun} from ${min} on.` : `Give ${noun} from ${min} to ${max}.`;
}

/** Arrow keys move by the parameter's step; typed numbers need not be multiples of it. */
function stepWithArrows(event, { min, max = Infinity, step = 1 }, value, set) {
  const direction = { ArrowUp: 1, ArrowDown: -1 }[event.key];
  if (!direction) return;
  event.preventDefault();
  const next = Math.round(((value ?? min) + direction * step) * 1000) / 1000;
  set(Math.min(max, Math.max(min, next)));
}

function CheckControl({ id, value, set, described }) {
  return html`
    <input
      type="checkbox"
      id=${id}
      checked=${value ?? false}
      aria-describedby=${described}
      onChange=${(event) => set(event.target.checked)}
    />
  `;
}

function ChoiceControl({ id, parameter, value, set, described }) {
  const { choices } = parameter;
  return html`
    <select
      id=${id}
      value=${value ?? choices[0]}
      aria-describedby=${described}
      onChange=${(event) => set(event.target.value === choices[0] ? undefined : event.target.value)}
    >
      ${choices.map((choice) => html`<option key=${choice} value=${choice}>${choice}</option>`)}
    </select>
  `;
}

/** Keeps the text as typed: an empty line is not a value yet, but may become one. */
function LinesControl({ id, value = [], set, described }) {
  const [typed, setTyped] = useState("");
  const shown = sameLines(linesOf(typed), value) ? typed : value.map(escaped).join("\n");
  const change = (event) => {
    setTyped(event.target.value);
    const lines = linesOf(event.target.value);
    set(lines.length ? lines : undefined);
  };
  return html`
    <textarea id=${id} rows="1" value=${shown} aria-describedby=${described} onInput=${change}></textarea>
  `;
}

const escaped = (line) => line.replaceAll("\n", "\\n");

const linesOf = (text) =>
  text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => line.replaceAll("\\n", "\n"));

const sameLines = (one, other) => JSON.stringify(one) === JSON.stringify(other);

const CONTROLS = {
  number: NumberControl,
  integer: NumberControl,
  boolean: CheckControl,
  choice: ChoiceControl,
  lines: LinesControl,
  bias: BiasControl,
};
