import { toJson } from "../literals.js";

export function curl({ fields, nice, isStreamed, address, needsToken }) {
  const body = toJson(isStreamed ? { ...fields, stream: true } : fields);
  const lines = [
    `curl${isStreamed ? " -N" : ""} ${quoted(`${address}/chat/completions${nice ? "?nice=true" : ""}`)}`,
    ...(needsToken ? [`  -H "Authorization: Bearer $TILLER_TOKEN"`] : []),
    `  -H 'Content-Type: application/json'`,
    `  -d ${quoted(body)}`,
  ];
  return lines.join(" \\\n");
}

/** For a POSIX shell: in single quotes, everything but a single quote stands for itself. */
const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;
