// The token that is looked at, by pointer or by arrow keys.
import { plainText } from "../parts/numbers.js";
import { announce } from "../state/announcements.js";
import { nameOf } from "../state/concepts.js";
import { signal } from "../vendor/signals-core.js";
import { visible } from "./tokens.js";

/** `{ answer, index, element }`, or null. */
export const inspected = signal(null);

export function pointAt(answer, target) {
  const index = target.dataset.token;
  if (index !== undefined) show(answer, Number(index), target);
}

export function leaveToken() {
  mark(null);
  inspected.value = null;
}

const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

export function moveByKey(answer, event) {
  if (event.key === "Escape") return leaveToken();
  const step = STEPS[event.key];
  if (!step) return;
  event.preventDefault();
  const before = inspected.value?.answer === answer ? inspected.value.index : -1;
  const index = Math.max(0, Math.min(answer.tokens.length - 1, before + step));
  const element = event.currentTarget.querySelector(`[data-token="${index}"]`);
  if (!element) return;
  element.scrollIntoView({ block: "nearest" });
  show(answer, index, element);
  announce(spoken(answer.tokens[index]));
}

function show(answer, index, element) {
  mark(element);
  inspected.value = { answer, index, element };
}

let marked = null;

function mark(element) {
  marked?.classList.remove("current");
  element?.classList.add("current");
  marked = element;
}

const percent = (logprob) => `${Math.round(Math.exp(logprob) * 100)} percent`;

const SPOKEN_ALTERNATIVES = 3;

function spoken({ token, logprob, alternatives, readings }) {
  const likely = logprob === undefined ? "" : `, probability ${percent(logprob)}`;
  const read = Object.entries(readings ?? {}).map(([id, reading]) => `, ${nameOf(id)} ${plainText(reading)}`);
  const others = alternatives
    .filter((each) => each.token !== token)
    .slice(0, SPOKEN_ALTERNATIVES)
    .map((each) => `${visible(each.token)} ${percent(each.logprob)}`);
  return `${visible(token)}${likely}${read.join("")}${others.length ? `. Instead: ${others.join(", ")}` : ""}`;
}
