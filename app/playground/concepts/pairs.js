// Pairs of example texts, from what people paste or open: CSV, TSV, JSON, JSON Lines or YAML.

/**
 * Returns `{ name, description, pairs }`: a pair is `{ positive, negative, prompt }`, name and description may be
 * undefined. Throws an Error that says what is wrong, and where.
 */
export async function parsePairs(text) {
  const given = text.replace(/^\uFEFF/, "").trim();
  if (!given) throw new Error("There is no text.");
  const parse = PARSERS.find(([looksLike]) => looksLike(given))[1];
  const { name, description, examples } = await parse(given);
  if (!Array.isArray(examples)) throw new Error("There is no list of examples.");
  if (examples.length === 0) throw new Error("The list of examples is empty.");
  return { name: textOf(name), description: textOf(description), pairs: examples.map(toPair) };
}

const PARSERS = [
  [(text) => text.startsWith("["), async (text) => ({ examples: JSON.parse(text) })],
  [(text) => text.startsWith("{") && isJson(text) && "examples" in JSON.parse(text), async (text) => JSON.parse(text)],
  [(text) => text.startsWith("{"), async (text) => ({ examples: parseLines(text) })],
  [(text) => text.split("\n", 1)[0].includes("\t"), parseTable], // cells of a spreadsheet, whatever they begin with
  [(text) => /^(#|---|examples:|name:|description:|- |-$)/m.test(text.split("\n", 1)[0]), parseYaml],
  [() => true, parseTable],
];

function isJson(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

function parseLines(text) {
  return text.split("\n").flatMap((line, index) => {
    if (!line.trim()) return [];
    try {
      return [JSON.parse(line)];
    } catch {
      throw new Error(`Line ${index + 1} is not JSON: ${shorten(line)}`);
    }
  });
}

async function parseYaml(text) {
  const { load } = await import("../vendor/js-yaml.js");
  let content;
  try {
    content = load(text);
  } catch (error) {
    throw new Error(`This is not YAML: ${error.reason ?? error.message}${lineOf(error)}`);
  }
  return Array.isArray(content) ? { examples: content } : (content ?? {});
}

const lineOf = (error) => (error.mark ? ` (line ${error.mark.line + 1})` : "");

/** CSV, or cells pasted from a spreadsheet. Without a header, the first column is the positive text. */
async function parseTable(text) {
  const { default: papa } = await import("../vendor/papaparse.js");
  const data = rowsOf(text, papa);
  const header = data[0].map((cell) => cell.trim().toLowerCase());
  const hasHeader = header.includes("positive") && header.includes("negative");
  if (!hasHeader && data[0].length < 2) {
    throw new Error("There are no two columns. Give CSV with the columns positive and negative.");
  }
  const names = hasHeader ? header : ["positive", "negative", "prompt"];
  const rows = hasHeader ? data.slice(1) : data;
  const long = data.findIndex((row) => row.slice(names.length).some((cell) => cell.trim()));
  if (long >= 0) {
    throw new Error(`Row ${long + 1} has ${data[long].length} columns. Put quotes around texts that contain the separator.`);
  }
  return { examples: rows.map((row) => Object.fromEntries(names.map((name, column) => [name, row[column] ?? ""]))) };
}

function rowsOf(text, papa) {
  const isSpreadsheet = text.split("\n", 1)[0].includes("\t");
  const delimiter = isSpreadsheet ? "\t" : ""; // "": Papa Parse finds out
  const { data, errors } = papa.parse(text, { delimiter, skipEmptyLines: "greedy" });
  const fault = errors.find(({ type }) => type === "Quotes");
  if (!fault) return data;
  // Spreadsheets put cells in quotes only if they have several lines. Here a text itself begins with a quote.
  if (isSpreadsheet) return papa.parse(text, { delimiter, skipEmptyLines: "greedy", quoteChar: "" }).data;
  throw new Error(`Row ${fault.row + 1}: a text in quotes has no end, or goes on after it.`);
}

function toPair(example, index) {
  const where = `Example ${index + 1}`;
  if (typeof example !== "object" || example === null) throw new Error(`${where} is not an object: ${shorten(String(example))}`);
  const { positive, negative, prompt = "" } = example;
  for (const [name, text] of Object.entries({ positive, negative })) {
    if (typeof text !== "string" || !text.trim()) throw new Error(`${where} has no text "${name}".`);
  }
  return { positive, negative, prompt: typeof prompt === "string" ? prompt : "" };
}

const textOf = (value) => (typeof value === "string" ? value : undefined);

const shorten = (text) => (text.length > 60 ? `${text.slice(0, 60)}…` : text);
