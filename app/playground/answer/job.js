// What a view is doing at the moment. Starting again stops what was started before.
import { signal } from "../vendor/signals-core.js";

export class Job {
  isRunning = signal(false);
  #controller = null;

  /** `work(signal)`: a function that ends early if the AbortSignal says so. */
  async start(work) {
    this.stop();
    const controller = new AbortController();
    this.#controller = controller;
    this.isRunning.value = true;
    await work(controller.signal);
    if (this.#controller === controller) this.stop();
  }

  stop() {
    this.#controller?.abort();
    this.#controller = null;
    this.isRunning.value = false;
  }
}
