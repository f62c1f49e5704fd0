// The concepts that steer a view's requests, with a strength each.
import { signal } from "../vendor/signals-core.js";

export class ConceptChoice {
  /** `{ id, strength }`, in the order in which they were chosen. */
  list = signal([]);

  add(id, strength = 1) {
    if (this.ids.includes(id)) this.setStrength(id, strength);
    else this.list.value = [...this.list.value, { id, strength }];
  }

  /** This concept steers, and no other. */
  only(id, strength = 1) {
    this.list.value = [{ id, strength }];
  }

  remove(id) {
    this.list.value = this.list.value.filter((concept) => concept.id !== id);
  }

  setStrength(id, strength) {
    this.list.value = this.list.value.map((concept) => (concept.id === id ? { id, strength } : concept));
  }

  get ids() {
    return this.list.value.map((concept) => concept.id);
  }
}

// Each view has its own: who tries a strength does not want the chat to follow.
export const steerConcepts = new ConceptChoice();
export const chatConcepts = new ConceptChoice();
