import { toJavaScript } from "../literals.js";

export function javaScriptFetch({ fields, nice, isStreamed, address, needsToken }) {
  const body = toJavaScript(isStreamed ? { ...fields, stream: true } : fields, "  ");
  return [
    "// save this as request.mjs",
    `const response = await fetch("${address}/chat/completions${nice ? "?nice=true" : ""}", {`,
    '  method: "POST",',
    "  headers: {",
    '    "Content-Type": "application/json",',
    ...(needsToken ? ["    Authorization: `Bearer ${process.env.TILLER_TOKEN}`,"] : []),
    "  },",
    `  body: JSON.stringify(${body}),`,
    "});",
    "if (!response.ok) throw new Error(await response.text());",
    ...(isStreamed ? STREAM : WHOLE),
    "",
  ].join("\n");
}

const WHOLE = [
  "const answer = await response.json();",
  "for (const choice of answer.choices) console.log(choice.message.content);",
];

const STREAM = [
  'let rest = "";',
  "const decoder = new TextDecoder();",
  "for await (const bytes of response.body) {",
  '  const lines = (rest + decoder.decode(bytes, { stream: true })).split("\\n");',
  "  rest = lines.pop();",
  "  for (const line of lines) {",
  '    if (!line.startsWith("data: ") || line === "data: [DONE]") continue;',
  "    const chunk = JSON.parse(line.slice(6));",
  "    if (chunk.error) throw new Error(chunk.error.message);",
  '    for (const choice of chunk.choices) process.stdout.write(choice.delta.content ?? "");',
  "  }",
  "}",
];
