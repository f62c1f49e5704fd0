// Turns the log probabilities and readings of chunks into tokens with the text that each one shows.

/**
 * A token: `{ text, token, logprob, alternatives, readings }`. A character of several tokens is the text of the
 * last of them. `logprob` and `readings` are undefined if the request did not ask for them.
 */
export class TokenReader {
  #decoder = new TextDecoder();

  read(logprobs, readings) {
    const entries = logprobs.length ? logprobs : readings;
    return entries.map((entry, index) => ({
      text: this.#decoder.decode(new Uint8Array(entry.bytes), { stream: true }),
      token: entry.token,
      logprob: logprobs[index]?.logprob,
      alternatives: logprobs[index]?.top_logprobs ?? [],
      readings: readings[index]?.readings,
    }));
  }
}

/** A token as people can read it: with visible spaces and line breaks. */
export function visible(token) {
  return token.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";
}
