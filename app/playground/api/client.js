// Sends requests to the server that this page came from, with the access token. Knows no route.
import { askForToken, token } from "../state/access.js";

// This file is playground/api/client.js, wherever a proxy has put the server.
const BASE = new URL("../../", import.meta.url);

/** The server's address without a slash at its end, for code that people copy. */
export const address = BASE.href.replace(/\/$/, "");

/** An error answer of the server, or no answer at all: then `status` is 0. */
export class ServerError extends Error {
  constructor(message, { status = 0, code = "", param = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param, retryAfter });
  }
}

/** Sends a request and returns the Response. Asks for an access token if the server wants one. */
export async function send(path, options = {}) {
  for (;;) {
    const used = token.value;
    const response = await request(path, options);
    if (response.ok) return response;
    const error = await readError(response);
    if (response.status !== 401) throw error;
    const isNewer = token.value !== used; // another request has asked meanwhile
    if (!isNewer && !(await askForToken(error.message))) throw error;
  }
}

/** The answer's JSON. */
export async function readJson(path, options) {
  const response = await send(path, options);
  return response.status === 204 ? null : response.json();
}

async function request(path, { json, headers = {}, ...options }) {
  const all = { ...headers };
  if (token.value) all["Authorization"] = `Bearer ${token.value}`;
  if (json !== undefined) {
    all["Content-Type"] = "application/json";
    options.body = JSON.stringify(json);
  }
  try {
    return await fetch(new URL(path, BASE), { ...options, headers: all });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("No answer from the server.");
  }
}

async function readError(response) {
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  const fields = { status: response.status, retryAfter };
  try {
    const body = await response.json();
    return errorOf(body, fields);
  } catch {
    return new ServerError(`${response.status} ${response.statusText}`, fields);
  }
}

/** The error in an answer's body, or in the last event of a stream. */
export function errorOf(body, fields = {}) {
  const { message, code, param } = body.error;
  return new ServerError(message, { ...fields, code, param });
}
