// Words for screen readers, in one live region (parts/announcer.js).
import { signal } from "../vendor/signals-core.js";

export const announcement = signal("");

export function announce(text) {
  // The same words twice are read twice only if the region changes.
  announcement.value = announcement.value === text ? `${text} ` : text;
}
