// Values as source code of JSON, Python and JavaScript, indented by four or two spaces.

const WIDTH = 88;

const JSON_WORDS = { null: "null", true: "true", false: "false" };
const PYTHON_WORDS = { null: "None", true: "True", false: "False" };
const PLAIN_NAME = /^[A-Za-z_$][\w$]*$/;

const json = { words: JSON_WORDS, key: (name) => JSON.stringify(name), indent: "  ", comma: "" };
const python = { words: PYTHON_WORDS, key: json.key, indent: "    ", comma: "," };
const javascript = {
  words: JSON_WORDS,
  key: (name) => (PLAIN_NAME.test(name) ? name : JSON.stringify(name)),
  indent: "  ",
  comma: ",",
};

export const toJson = (value) => write(value, json, "");
export const toPython = (value, before = "") => write(value, python, before);
export const toJavaScript = (value, before = "") => write(value, javascript, before);

/** `before`: the indentation of the line on which the value begins. */
function write(value, language, before) {
  if (typeof value === "string") return JSON.stringify(value);
  if (typeof value === "number") return String(value);
  if (typeof value !== "object" || value === null) return language.words[value];
  const isArray = Array.isArray(value);
  const entries = isArray ? value.map((each) => ["", each]) : Object.entries(value).map(([k, v]) => [`${language.key(k)}: `, v]);
  const [open, close] = isArray ? "[]" : "{}";
  const short = open + entries.map(([name, each]) => name + write(each, language, "")).join(", ") + close;
  if (before.length + short.length <= WIDTH && !short.includes("\n")) return short;
  const inner = before + language.indent;
  const lines = entries.map(([name, each]) => inner + name + write(each, language, inner));
  return `${open}\n${lines.join(",\n")}${language.comma}\n${before}${close}`;
}
