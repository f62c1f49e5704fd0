// How numbers are written: with a real minus sign, and no more digits than they are worth. And words beside them.

const MINUS = "−";

/** A strength: `+1`, `−0.5`, `0`. */
export function strengthText(strength) {
  const rounded = Math.round(strength * 100) / 100;
  return rounded > 0 ? `+${rounded}` : plainText(rounded);
}

/** A number with at most this many digits after the point. */
export function plainText(number, digits = 2) {
  if (number === null || number === undefined || !Number.isFinite(number)) return "–";
  const scale = 10 ** digits;
  const rounded = Math.round(number * scale) / scale;
  return rounded < 0 ? MINUS + -rounded : String(rounded);
}

export const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** `1 pair`, `2 pairs`. */
export const countText = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

/** A probability between 0 and 1 as percent. */
export function percentText(probability) {
  const percent = probability * 100;
  if (percent >= 99.95) return "100 %";
  if (percent === 0) return "0 %";
  if (percent < 0.1) return "< 0.1 %";
  return `${percent.toFixed(percent < 10 ? 1 : 0)} %`;
}
