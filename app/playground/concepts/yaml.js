// A concept as the YAML that configs/concepts takes.

export async function toYaml({ name, description, pairs }) {
  const { dump } = await import("../vendor/js-yaml.js");
  const examples = pairs.map(({ positive, negative, prompt }) => (prompt ? { prompt, positive, negative } : { positive, negative }));
  return dump({ name, ...(description ? { description } : {}), examples }, { lineWidth: -1 });
}
