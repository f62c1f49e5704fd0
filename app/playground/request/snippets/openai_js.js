import { toJavaScript } from "../literals.js";

export function javaScriptOpenai({ fields, nice, isStreamed, address, needsToken }) {
  const body = toJavaScript(isStreamed ? { ...fields, stream: true } : fields);
  const query = nice ? ", { query: { nice: true } }" : "";
  const key = needsToken ? "process.env.TILLER_TOKEN" : '"none"';
  return [
    "// npm install openai, and save this as request.mjs",
    'import OpenAI from "openai";',
    "",
    `const client = new OpenAI({ baseURL: "${address}/v1", apiKey: ${key} });`,
    `const ${isStreamed ? "stream" : "answer"} = await client.chat.completions.create(${body}${query});`,
    ...(isStreamed ? STREAM : ["for (const choice of answer.choices) console.log(choice.message.content);"]),
    "",
  ].join("\n");
}

const STREAM = [
  "for await (const chunk of stream) {",
  "  for (const choice of chunk.choices) process.stdout.write(choice.delta.content ?? \"\");",
  "}",
];
