import { toPython } from "../literals.js";

// What the client's create() has as parameters. It sends everything else with extra_body.
const KNOWN = new Set([
  ...["model", "messages", "max_tokens", "stop", "n", "temperature", "top_p"],
  ...["frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs"],
]);

export function pythonOpenai({ fields, nice, isStreamed, address, needsToken }) {
  const known = Object.entries(fields).filter(([name]) => KNOWN.has(name));
  const others = Object.entries(fields).filter(([name]) => !KNOWN.has(name));
  const values = [
    ...known,
    ...(isStreamed ? [["stream", true]] : []),
    ...(others.length ? [["extra_body", Object.fromEntries(others)]] : []),
    ...(nice ? [["extra_query", { nice: "true" }]] : []),
  ];
  const inner = "    ";
  return [
    "# pip install openai",
    ...(needsToken ? ["import os", ""] : []),
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url="${address}/v1", api_key=${needsToken ? 'os.environ["TILLER_TOKEN"]' : '"none"'})`,
    `${isStreamed ? "stream" : "answer"} = client.chat.completions.create(`,
    ...values.map(([name, value]) => `${inner}${name}=${toPython(value, inner)},`),
    ")",
    ...(isStreamed ? STREAM : fields.n > 1 ? EACH : WHOLE),
    "",
  ].join("\n");
}

const WHOLE = ["print(answer.choices[0].message.content)"];
const EACH = ["for choice in answer.choices:", "    print(choice.message.content)"];
const STREAM = [
  "for chunk in stream:",
  "    for choice in chunk.choices:",
  '        print(choice.delta.content or "", end="", flush=True)',
  "print()",
];
