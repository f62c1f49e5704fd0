// The box beside a token: its probability, the alternatives, and the readings.
import { html } from "../html.js";
import { percentText, plainText } from "../parts/numbers.js";
import { nameOf } from "../state/concepts.js";
import { useLayoutEffect, useRef } from "../vendor/preact-hooks.js";
import { inspected } from "./inspection.js";
import { visible } from "./tokens.js";

const GAP = 6;

export function Inspector() {
  const box = useRef();
  const now = inspected.value;
  useLayoutEffect(() => {
    if (now && box.current) place(box.current, now.element.getClientRects()[0]);
  }, [now]);
  const token = now?.answer.tokens[now.index];
  if (!token) return null;
  const { logprob, alternatives, readings } = token;
  return html`
    <div class="inspector" ref=${box} aria-hidden="true">
      <p>
        <code>${visible(token.token)}</code>
        ${logprob !== undefined && html` ${percentText(Math.exp(logprob))} <small>logprob ${plainText(logprob)}</small>`}
      </p>
      ${alternatives.length > 0 && html`<${Alternatives} token=${token} />`}
      ${readings && html`<${Readings} readings=${readings} />`}
    </div>
  `;
}

function Alternatives({ token }) {
  return html`
    <table>
      ${token.alternatives.map(({ token: name, logprob }) => {
        const percent = Math.exp(logprob) * 100;
        return html`
          <tr class=${name === token.token ? "taken" : ""}>
            <td><code>${visible(name)}</code></td>
            <td>${percentText(percent / 100)}</td>
            <td class="share"><span style=${{ width: `${Math.max(1, percent)}%` }}></span></td>
          </tr>
        `;
      })}
    </table>
  `;
}

function Readings({ readings }) {
  return html`
    <table>
      ${Object.entries(readings).map(
        ([id, reading]) => html`<tr><td>${nameOf(id)}</td><td>${plainText(reading)}</td></tr>`,
      )}
    </table>
  `;
}

/** Below the token if there is room, else above it. */
function place(box, token) {
  if (!token) return;
  const { width, height } = box.getBoundingClientRect();
  const below = token.bottom + GAP;
  const top = below + height < innerHeight ? below : token.top - height - GAP;
  const left = Math.max(GAP, Math.min(token.left, innerWidth - width - GAP));
  box.style.top = `${Math.max(GAP, top)}px`;
  box.style.left = `${left}px`;
}
