// The text of an answer, plain or with coloured tokens. Each paragraph is a block of its own: when a token arrives,
// the browser lays out the last one only.
import { html } from "../html.js";
import { Component } from "../vendor/preact.js";
import { classOf, NONE } from "./colours.js";
import { leaveToken, moveByKey, pointAt } from "./inspection.js";

export function AnswerText({ answer, colour }) {
  answer.version.value; // rendered again when the answer changes
  const { text, tokens } = answer;
  if (colour === NONE || tokens.length === 0) return html`<${PlainText} text=${text} />`;
  const ends = paragraphs(tokens.length, (index) => tokens[index].text.endsWith("\n"));
  return html`
    <div
      class="text tokens"
      tabindex="0"
      role="group"
      aria-label="Tokens of the answer. The arrow keys go from token to token."
      onPointerOver=${(event) => pointAt(answer, event.target)}
      onPointerLeave=${leaveToken}
      onKeyDown=${(event) => moveByKey(answer, event)}
      onBlur=${leaveToken}
    >
      ${ends.map(([begin, end]) => html`<${Tokens} key=${begin} ...${{ tokens, begin, end, colour }} />`)}
    </div>
  `;
}

function PlainText({ text }) {
  const ends = paragraphs(text.length, (index) => text[index] === "\n");
  return html`
    <div class="text">
      ${ends.map(([begin, end]) => html`<div key=${begin}>${text.slice(begin, end)}</div>`)}
    </div>
  `;
}

class Tokens extends Component {
  shouldComponentUpdate(next) {
    const { tokens, end, colour } = this.props;
    return next.end !== end || next.colour !== colour || next.tokens !== tokens;
  }

  render({ tokens, begin, end, colour }) {
    const shown = tokens.slice(begin, end);
    return html`
      <div>
        ${shown.map((token, index) => html`<span class=${`t ${classOf(token, colour)}`} data-token=${begin + index}>${token.text}</span>`)}
      </div>
    `;
  }
}

/** `[begin, end]` of each paragraph. The last one may still grow. */
function paragraphs(length, isEnd) {
  const found = [];
  let begin = 0;
  for (let index = 0; index < length; index += 1) {
    if (!isEnd(index)) continue;
    found.push([begin, index + 1]);
    begin = index + 1;
  }
  if (begin < length) found.push([begin, length]);
  return found;
}
