// Requests to the service, the same as curl, and streams that come back by themselves.
// Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation

import {ANY_DEPTH, member, parse} from "./json.js"

/** Where the service is: one level above this page. */
export const BASE = new URL("..", document.baseURI)
const LIMIT_MS = 30_000 // for a response
const SILENCE_MS = 20_000 // a stream has a heartbeat every 15 s
const MAX_DELAY_MS = 4_000 // until a stream is opened again
const HAS_DOTS = /\/(\.|%2e){1,2}(\/|$)/i
const HIDDEN_MS = 5_000 // a page that is not seen gives its connections back after this time

export const token = {
  get: () => sessionStorage.getItem("kvstore-token") ?? "",
  set: text => (text ? sessionStorage.setItem("kvstore-token", text) : sessionStorage.removeItem("kvstore-token")),
}

/** What a response of 400 and above says: its members, with `current` as a tree. Status 0: there was no response. */
export class Problem extends Error {
  constructor(status, detail, members = {}) {
    super(detail)
    Object.assign(this, {status, detail}, members)
  }
}

async function problem(response) {
  const text = await response.text()
  try {
    const tree = parse(text, ANY_DEPTH)
    const said = name => member(tree, name)?.value
    const etag = said("etag"), current = member(tree, "current")
    const isNothing = current?.kind === "null" && !etag // a document that is null has an entity-tag
    const members = {title: said("title"), etag, current: isNothing ? null : current, index: member(tree, "index")?.text}
    const inner = member(tree, "problem")
    const detail = [said("detail"), inner && member(inner, "detail")?.value].filter(Boolean).join(": ")
    return new Problem(response.status, detail || response.statusText, {...members, inner: Number(inner && member(inner, "status")?.text)})
  } catch {
    return new Problem(response.status, `the server answered ${response.status} ${response.statusText}`)
  }
}

/** Send a request; return the response if it is below 400. Throws Problem. */
export async function send(method, path, options) {
  const response = await ask(method, path, options)
  if (response.status >= 400) throw await problem(response)
  return response
}

/** Send a request; return the response whatever it is. Throws Problem without one. */
export async function ask(method, path, {query = "", headers = {}, body, signal = AbortSignal.timeout(LIMIT_MS)} = {}) {
  const sent = {...headers}
  if (HAS_DOTS.test(path)) throw new Problem(400, "a path has a segment that is . or ..: a browser would ask for another path")
  if (token.get()) sent.Authorization = `Bearer ${token.get()}`
  if (body !== undefined) sent["Content-Type"] ??= "application/json"
  try {
    return await fetch(at(path, query), {method, headers: sent, body, signal, cache: "no-store", credentials: "same-origin"})
  } catch (error) {
    if (signal.aborted && error.name === "AbortError") throw error
    throw new Problem(0, "the service cannot be reached")
  }
}

const at = (path, query) => BASE.href.replace(/\/$/, "") + path + (query && `?${query}`)

/** Return what is stored at a document's path: {node, etag, expires, modified}, null if nothing is. */
export async function get(path) {
  try {
    return await stored(await send("GET", path))
  } catch (error) {
    if (error.status === 404) return null
    throw error
  }
}

/** Return the tree of a response. */
export const answer = async response => parse(await response.text(), ANY_DEPTH)

/** Return the document in a response. Its member `ttl` is not stored, so it is left out. */
export async function stored(response) {
  const text = await response.text()
  const node = withoutTTL(parse(text))
  const day = name => (response.headers.has(name) ? Date.parse(response.headers.get(name)) : null)
  return {node, etag: response.headers.get("ETag"), expires: day("Sunset"), modified: day("Last-Modified")}
}

export function withoutTTL(node) {
  if (node.names?.at(-1) !== "ttl") return node
  return {...node, names: node.names.slice(0, -1), nodes: node.nodes.slice(0, -1)}
}

const quoted = text => (/^[\w./:@%+,=-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`)

/** Return the command line that sends the same request. A token is not shown: the shell has it in $TOKEN. */
export function curl(method, path, {query = "", headers = {}, body} = {}) {
  const parts = ["curl"]
  if (method !== "GET") parts.push("-X", method)
  for (const [name, value] of Object.entries(headers)) parts.push("-H", quoted(`${name}: ${value}`))
  if (token.get()) parts.push("-H", '"Authorization: Bearer $TOKEN"')
  if (body !== undefined) parts.push(body.startsWith("@") ? "--data-binary" : "-d", quoted(body))
  return [...parts, quoted(at(path, query))].join(" ")
}

// --- Paths: each segment is percent-encoded in one way ---

const LITERAL = /%(?:24|26|2B|2C|3B|3D|3A|40)/g

export function encodeSegment(text) {
  return encodeURIComponent(text).replace(LITERAL, decodeURIComponent)
}

/** Return a path that a person has typed, in the service's spelling. */
export function canonical(text) {
  const decoded = segment => {
    try {
      return decodeURIComponent(segment)
    } catch {
      return segment
    }
  }
  return `/${text.trim().replace(/^\//, "").split("/").map(each => encodeSegment(decoded(each))).join("/")}`
}

/** Return a path as a person would type it: canonical() of it is the path again. */
export const typed = path => path.split(/(%25|%2F)/).map((part, i) => (i % 2 ? part : decodeURIComponent(part))).join("")

/** Return a name for people: decoded, but for a slash, which is a character of the name. */
export function shown(name) {
  return name.split("%2F").map(decodeURIComponent).join("%2F")
}

/** Return the Redis key of a document (docs/data-layout.md). */
export function redisKey(path) {
  const [, namespace, ...rest] = path.split("/")
  return rest.length ? `kv:{${namespace}}/${rest.join("/")}` : `kv:{/}/${namespace}`
}

// --- Streams ---

const wait = ms => new Promise(resolve => setTimeout(resolve, ms))
const wake = new EventTarget()
addEventListener("online", () => wake.dispatchEvent(new Event("wake")))
addEventListener("visibilitychange", () => document.hidden || wake.dispatchEvent(new Event("wake")))
const woken = ms => Promise.race([wait(ms), new Promise(resolve => wake.addEventListener("wake", resolve, {once: true}))])

/**
 * Follow a path from a position in its log, for as long as `signal` is not aborted. Calls on.event({type, id, ...data}), with
 * the value as a tree; on.reset() where changes were lost; on.state("live" or "lost"). It returns when it is refused, with
 * the problem.
 */
export async function follow(path, position, signal, on, query = "") {
  for (let failures = 0; !signal.aborted; ) {
    const attempt = new AbortController()
    const end = () => attempt.abort()
    signal.addEventListener("abort", end)
    let timer, hidden
    const heard = () => {
      clearTimeout(timer)
      timer = setTimeout(end, SILENCE_MS)
    }
    const seen = () => {
      clearTimeout(hidden)
      if (document.hidden) hidden = setTimeout(end, HIDDEN_MS)
    }
    addEventListener("visibilitychange", seen)
    let delay
    try {
      heard()
      const headers = {Accept: "text/event-stream", ...(position && {"Last-Event-ID": position})}
      const response = await send("GET", path, {query, headers, signal: attempt.signal})
      failures = 0
      on.state("live")
      for await (const block of blocks(response.body, heard)) {
        if (block.id) position = block.id
        if (block.retry) delay = Number(block.retry)
        if (block.event === "reset") {
          on.reset()
          position = null
        } else if (block.event) on.event({type: block.event, id: block.id, ...event(block.data)})
      }
    } catch (error) {
      if ([400, 401, 403, 404].includes(error.status)) return error
      delay = undefined
      failures += 1
    } finally {
      clearTimeout(timer)
      clearTimeout(hidden)
      signal.removeEventListener("abort", end)
      removeEventListener("visibilitychange", seen)
    }
    if (signal.aborted) break
    on.state("lost")
    while (document.hidden && !signal.aborted) await woken(60_000)
    await woken(Math.random() * (delay ?? Math.min(MAX_DELAY_MS, 250 * 2 ** failures)))
  }
  return null
}

/** The time in ms at which a TTL in s ends; null for none. */
export const expiry = ttl => (ttl < Infinity ? Date.now() + 1000 * ttl : null)

function event(text) {
  const tree = parse(text, ANY_DEPTH)
  const of = name => member(tree, name)
  const ttl = Number(of("ttl")?.text) || Infinity
  return {
    path: of("path")?.value,
    etag: of("etag")?.value ?? null,
    ttl,
    expires: expiry(ttl),
    node: of("value"),
  }
}

async function* blocks(body, heard) {
  let block = {}
  for await (const line of lines(body)) {
    heard()
    const colon = line.indexOf(": ")
    if (colon > 0) block[line.slice(0, colon)] = line.slice(colon + 2)
    if (line) continue
    yield block
    block = {}
  }
}

/** The parts of a readable stream. Not every browser can iterate over one. */
export async function* read(stream) {
  const reader = stream.getReader()
  try {
    for (;;) {
      const {done, value} = await reader.read()
      if (done) return
      yield value
    }
  } finally {
    reader.cancel().catch(() => {})
  }
}

/** The lines of a readable stream of bytes. */
export async function* lines(stream) {
  let rest = ""
  for await (const text of read(stream.pipeThrough(new TextDecoderStream()))) {
    const found = (rest + text).split("\n")
    rest = found.pop()
    yield* found
  }
  if (rest) yield rest
}
