// Nodes of a graph, those inside its subgraphs too. No DOM and no ComfyUI in here.

/** Find a node by the id that the server uses; "3:7" is node 7 inside node 3's subgraph. */
export function nodeAt(root, id) {
  const path = String(id).split(":");
  let graph = root;
  for (const step of path.slice(0, -1)) graph = graph?.getNodeById(Number(step))?.subgraph;
  return graph?.getNodeById(Number(path.at(-1)));
}

/** List a graph's nodes, and those inside its subgraphs. */
export function* allNodes(graph) {
  for (const node of graph?._nodes ?? []) {
    yield node;
    yield* allNodes(node.subgraph);
  }
}
