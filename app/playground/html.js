// `html`: templates for Preact components. Also loads the signals, which make components follow their state.
import "./vendor/signals.js";
import htm from "./vendor/htm.js";
import { h } from "./vendor/preact.js";

export const html = htm.bind(h);
