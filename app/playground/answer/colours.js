// The colour of a token, as the name of a CSS class, so that thousands of tokens share a few styles.

export const NONE = "none";
export const LOGPROB = "logprob";

const LEVELS = 8;

/** The class of a token. `colour`: NONE, LOGPROB or a concept's id. */
export function classOf(token, colour) {
  if (colour === LOGPROB) return token.logprob === undefined ? "" : probabilityClass(token.logprob);
  const reading = token.readings?.[colour];
  return reading === undefined || reading === null ? "" : readingClass(reading);
}

/** `p0` (certain) to `p8` (unlikely): a step for each factor of e^-0.6. */
function probabilityClass(logprob) {
  return `p${Math.min(LEVELS, Math.floor(-logprob / 0.6))}`;
}

/** `r-4` (like the negative examples, or beyond) to `r4` (like the positive ones). */
function readingClass(reading) {
  const level = Math.round((reading - 0.5) * 4);
  return `r${Math.max(-4, Math.min(4, level))}`;
}
