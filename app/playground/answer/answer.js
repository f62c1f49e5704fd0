// One answer while it is made and afterwards. Components follow `version`, which changes once per frame at most:
// a token more often than the screen refreshes would only cost time.
import { signal } from "../vendor/signals-core.js";
import { TokenReader } from "./tokens.js";

export class Answer {
  version = signal(0);
  text = "";
  /** One entry for each token, if the request asked for log probabilities or readings: see tokens.js. */
  tokens = [];
  /** `waiting`, `streaming`, `done`, `stopped` or `failed`. */
  status = "waiting";
  /** Why it still waits, if that is not the model. */
  notice = "";
  finishReason = null;
  error = null;
  /** Concept id: the strength used instead of the requested one. */
  applied = null;
  usage = null;
  startedAt = performance.now();
  firstAt = null;
  endedAt = null;

  #reader = new TokenReader();
  #frame = null;

  /** Takes what a chunk of the stream has for this choice. */
  take(choice, { steering }) {
    const { delta, logprobs, steering_readings: readings, finish_reason: finishReason } = choice;
    if (delta.content) {
      this.firstAt ??= performance.now();
      this.status = "streaming";
      this.text += delta.content;
    }
    this.tokens.push(...this.#reader.read(logprobs?.content ?? [], readings?.content ?? []));
    if (steering) this.applied = steering.applied;
    if (finishReason) this.finishReason = finishReason;
    this.changed();
  }

  end(status, error = null) {
    Object.assign(this, { status, error, endedAt: performance.now() });
    this.#publish();
  }

  get isOpen() {
    return this.status === "waiting" || this.status === "streaming";
  }

  changed() {
    this.#frame ??= requestAnimationFrame(() => this.#publish());
  }

  #publish() {
    if (this.#frame !== null) cancelAnimationFrame(this.#frame);
    this.#frame = null;
    this.version.value += 1;
  }
}
