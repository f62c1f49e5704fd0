// A conversation with branches, as plain values. Each change makes a new tree.
//
// A node: `{ id, parent, role, text }` of the user, or `{ id, parent, role, answer, concepts, request, isRepeat }` of
// the assistant: an Answer, the concepts that steered it, the request, and whether it had this answer before. Nodes
// with the same parent are branches of each other; `active` has the chosen child of each parent, and of the root, null.

export const EMPTY = { nodes: new Map(), active: new Map(), nextId: 1 };

/** `{ tree, ids }` with these nodes added below `parent`. The first one becomes the active branch. */
export function add(tree, parent, contents) {
  const nodes = new Map(tree.nodes);
  const ids = contents.map((content, index) => {
    const id = tree.nextId + index;
    nodes.set(id, { ...content, id, parent });
    return id;
  });
  const active = new Map(tree.active).set(parent, ids[0]);
  return { tree: { nodes, active, nextId: tree.nextId + contents.length }, ids };
}

/** The nodes from the root to the end of the active branch. */
export function path(tree) {
  const found = [];
  for (let id = tree.active.get(null); id !== undefined; id = tree.active.get(id)) found.push(tree.nodes.get(id));
  return found;
}

/** The ids of the node's branches, itself included, oldest first. */
export function branches(tree, node) {
  return [...tree.nodes.values()].filter((each) => each.parent === node.parent).map((each) => each.id);
}

/** The tree with this node's branch as the active one. */
export function choose(tree, id) {
  const { parent } = tree.nodes.get(id);
  return { ...tree, active: new Map(tree.active).set(parent, id) };
}

/** The messages before `parent`'s children: from the root to `parent`, whichever branch is active. */
export function turnsTo(tree, parent) {
  const turns = [];
  for (let id = parent; id !== null; id = tree.nodes.get(id).parent) {
    const { role, text, answer } = tree.nodes.get(id);
    turns.unshift({ role, content: answer ? answer.text : text });
  }
  return turns;
}
