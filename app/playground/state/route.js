// The view that the address names: `#steer`, `#chat`, `#concepts`, `#concepts/NAME`, `#new-concept`,
// `#import-vectors`.
import { signal } from "../vendor/signals-core.js";

const read = () => {
  const [view, ...rest] = location.hash.slice(1).split("/");
  return { view: view || "steer", argument: decodeURIComponent(rest.join("/")) };
};

export const route = signal(read());

addEventListener("hashchange", () => (route.value = read()));

export const addressOf = (view, argument) => (argument ? `#${view}/${encodeURIComponent(argument)}` : `#${view}`);

export function go(view, argument) {
  location.hash = addressOf(view, argument);
}
