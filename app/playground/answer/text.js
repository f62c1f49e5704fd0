// The text of an answer, plain or with coloured tokens. Long answers are cut into pieces, so that a new token
// changes the last piece only.
import { html } from "../html.js";
import { Component } from "../vendor/preact.js";
import { classOf, NONE } from "./colours.js";
import { leaveToken, moveByKey, pointAt } from "./inspection.js";

const PIECE_CHARACTERS = 1000;
const PIECE_TOKENS = 128;

export function AnswerText({ answer, colour }) {
  answer.version.value; // rendered again when the answer changes
  if (colour === NONE || answer.tokens.length === 0) return html`<${PlainText} text=${answer.text} />`;
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
      ${pieces(answer.tokens.length, PIECE_TOKENS).map(
        ([begin, end]) => html`<${Tokens} key=${begin} tokens=${answer.tokens} ...${{ begin, end, colour }} />`,
      )}
    </div>
  `;
}

function PlainText({ text }) {
  return html`
    <div class="text">
      ${pieces(text.length, PIECE_CHARACTERS).map(([begin, end]) => html`<span key=${begin}>${text.slice(begin, end)}</span>`)}
    </div>
  `;
}

class Tokens extends Component {
  shouldComponentUpdate(next) {
    const { tokens, end, colour } = this.props;
    return next.end !== end || next.colour !== colour || next.tokens !== tokens;
  }

  render({ tokens, begin, end, colour }) {
    return tokens
      .slice(begin, end)
      .map((token, index) => html`<span class=${`t ${classOf(token, colour)}`} data-token=${begin + index}>${token.text}</span>`);
  }
}

/** `[begin, end]` of pieces of this size; the last one may be shorter. */
function pieces(length, size) {
  return Array.from({ length: Math.ceil(length / size) }, (_, index) => [
    index * size,
    Math.min(length, (index + 1) * size),
  ]);
}
