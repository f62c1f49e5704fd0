import { toPython } from "../literals.js";

// What the client's ChatRequest has as fields. The code adds all others to the JSON that it sends.
const KNOWN = new Set(["max_tokens", "temperature", "top_p", "top_k", "steering_concepts"]);
const RENAMED = { max_tokens: "maximum_tokens" };
const INNER = "    ";

export function alephAlpha({ fields, nice, isStreamed, address, needsToken }) {
  const { model, messages, ...parameters } = fields;
  const known = Object.entries(parameters).filter(([name]) => KNOWN.has(name));
  const others = Object.entries(parameters).filter(([name]) => !KNOWN.has(name));
  const kind = others.length ? "SteeredRequest" : "ChatRequest";
  const client = [
    `token=${needsToken ? 'os.environ["TILLER_TOKEN"]' : '"none"'}`,
    `host="${address}"`,
    ...(nice ? ["nice=True"] : []),
  ].join(", ");
  return [
    "# pip install aleph-alpha-client",
    ...(isStreamed ? ["import asyncio"] : []),
    ...(needsToken ? ["import os"] : []),
    ...(isStreamed || needsToken ? [""] : []),
    `from aleph_alpha_client import ${isStreamed ? "AsyncClient" : "Client"}`,
    `from aleph_alpha_client.chat import ChatRequest, ${isStreamed ? "ChatStreamChunk, " : ""}Message, Role`,
    "",
    ...(others.length ? subclass(Object.fromEntries(others)) : []),
    `request = ${kind}(`,
    `${INNER}model=${toPython(model)},`,
    `${INNER}messages=[`,
    ...messages.map(({ role, content }) => `${INNER}${INNER}Message(Role.${ROLES[role]}, ${toPython(content)}),`),
    `${INNER}],`,
    ...known.map(([name, value]) => `${INNER}${RENAMED[name] ?? name}=${toPython(value, INNER)},`),
    ")",
    ...(isStreamed ? streaming(client) : whole(client)),
    "",
  ].join("\n");
}

const ROLES = { system: "System", user: "User", assistant: "Assistant" };

function subclass(fields) {
  return [
    "",
    "class SteeredRequest(ChatRequest):",
    '    """ChatRequest lacks fields for these."""',
    "",
    "    def to_json(self):",
    `        return {**super().to_json(), **${toPython(fields, INNER + INNER)}}`,
    "",
    "",
  ];
}

const whole = (client) => [`print(Client(${client}).chat(request, model=request.model).message.content)`];

const streaming = (client) => [
  "",
  "",
  "async def main():",
  `    async with AsyncClient(${client}) as client:`,
  "        async for item in client.chat_with_streaming(request, model=request.model):",
  "            if isinstance(item, ChatStreamChunk):",
  '                print(item.content, end="", flush=True)',
  "",
  "",
  "asyncio.run(main())",
];
