// The client of kvstore for browsers and Node: an ES module without dependencies.
//
//   import {connect} from "http://127.0.0.1:8000/_/kvstore.js"
//   const store = connect("http://127.0.0.1:8000")
//   await store.put("/people/ada", {born: 1815})
//
// A path is written as the service shows it: a name with other characters goes through encodeURIComponent() first.

const TRIES = 8 // of a request: with the waits between them some 20 s, in which a server starts again
const UNSURE = new Set([502, 503, 504]) // it is unknown whether the request was applied
const SILENCE_MS = 25_000 // twice the time between two heartbeats of a stream
const MOST_QUEUED = 10_000 // events of an iterator that nobody takes

/** A request that failed. `name` is that of the problem, such as "PreconditionFailed"; `status` is 0 without a response. */
export class Problem extends Error {
  constructor(name, status, detail, members) {
    super(detail)
    Object.assign(this, members, {name, status, detail})
  }
}

/** Return a client of the service at a URL. `token` is a string, or a function that returns one or a promise of one. */
export function connect(url = new URL("..", import.meta.url), {token} = {}) {
  return new Store(String(url).replace(/\/$/, ""), token)
}

class Store {
  #url
  #token

  constructor(url, token) {
    this.#url = url
    this.#token = token
  }

  /** Return the document at a path, null if nothing is stored there. */
  async get(path, {signal} = {}) {
    const answer = await this.#send("GET", path, {signal, accept: 404})
    return answer.status === 404 ? null : await documentIn(answer, path)
  }

  /** Store a value at a path, and return the document. */
  async put(path, value, options) {
    return documentIn(await this.#write("PUT", path, value, options), path)
  }

  /** Change a document: an object is a merge patch, an array a JSON Patch; undefined with `ttl` changes the TTL only. */
  async patch(path, patch, options) {
    return documentIn(await this.#write("PATCH", path, patch, options), path)
  }

  /** Append a value to a container, and return the document. */
  async post(path, value, options) {
    const answer = await this.#write("POST", path, value, options, {prefer: "return=representation"})
    const location = answer.headers.get("location")
    return documentIn(answer, location.slice(new URL(this.#url).pathname.replace(/\/$/, "").length))
  }

  /** Delete a document, and return whether there was one; with `recursive` all below a container, and return how many. */
  async delete(path, options = {}) {
    const answer = await this.#write("DELETE", path, undefined, {...options, accept: 404})
    return options.recursive ? (await answer.json()).deleted : answer.status !== 404
  }

  /** Iterate over what lies below a container, at most `limit`; with `count` return how many documents there are. */
  list(path, {limit = Infinity, count, signal, ...options} = {}) {
    const flags = path === "/" ? {list: true, ...options} : options
    if (count) return this.#count("GET", path, {query: {...flags, count}, signal})
    return this.#pages(limit, signal, page => this.#send("GET", path, {query: {...flags, limit: page}, signal}))
  }

  /** Iterate over the documents of a container that match: `where`, `sort`, `fields`, `search`, as QUERY takes them. */
  query(path, {limit = Infinity, count, signal, ...asked} = {}) {
    const send = body => this.#send("QUERY", path, {body: JSON.stringify(body), type: "application/json", signal})
    if (count) return send({...asked, count}).then(answer => answer.json()).then(found => found.count)
    return this.#pages(limit, signal, page => send({...asked, limit: page}))
  }

  /** Change a document by a function of its value until nobody has written in between, and return the document. */
  async update(path, change, {default: initial, ...options} = {}) {
    let found = await this.get(path, options)
    for (let waitMs = 8; ; waitMs = Math.min(2 * waitMs, 500)) {
      const value = await change(found ? found.value : initial)
      const condition = found ? {ifMatch: found.etag ?? "*"} : {ifNoneMatch: "*"}
      try {
        return await this.put(path, value, {...options, ...condition})
      } catch (problem) {
        if (problem.name !== "PreconditionFailed") throw problem
      }
      await sleep(waitMs * Math.random(), options.signal)
      found = await this.get(path, options)
    }
  }

  /** Send several requests, {method, path, headers, body}, and return their responses, {status, headers, body}. */
  async batch(requests, {atomic = true, ...options} = {}) {
    const answer = await this.#write("POST", "/_/batch", {atomic, requests}, options)
    return (await answer.json()).responses
  }

  /** Take jobs from a container: documents with `attempts`, `lease`, done(), renew(lease) and release(delay, reason). */
  async take(container, {lease = "30s", limit, wait, maxAttempts, signal} = {}) {
    const query = {lease, limit, wait, max_attempts: maxAttempts}
    const answer = await this.#send("POST", container, {query, signal, again: true})
    const {items} = answer.status === 204 ? {items: []} : await answer.json()
    return items.map(item => new Job(this, item))
  }

  /** Complete a job that was taken: delete it. Returns whether it was still there. */
  done(job, options) {
    return this.delete(job.path, {...options, ifMatch: `"${job.lease}"`})
  }

  /** Follow a document, or everything below a container. */
  follow(path, options = {}) {
    return new Following(this.#url, this.#token, path, options)
  }

  async #count(method, path, options) {
    return (await (await this.#send(method, path, options)).json()).count
  }

  async *#pages(limit, signal, first) {
    if (limit <= 0) return
    let answer = await first(Math.min(limit, 1000))
    for (let left = limit; ; ) {
      const {items, next} = await answer.json()
      for (const item of items) {
        yield item
        if (!--left) return
      }
      if (!next) return
      answer = await this.#send("GET", "", {url: new URL(next, this.#url), signal})
    }
  }

  /** Send a write so that it is applied once. */
  #write(method, path, value, options = {}, headers = {}) {
    const {ttl, delay, lease, recursive, ifMatch, ifNoneMatch, signal, accept} = options
    const isPatch = Array.isArray(value) && method === "PATCH"
    const again = isRepeatable(method, value)
    const key = options.idempotencyKey ?? (again || value?.atomic === false ? undefined : randomName())
    return this.#send(method, path, {
      query: {ttl, delay, lease, recursive},
      headers: {"if-match": ifMatch, "if-none-match": ifNoneMatch, "idempotency-key": key, ...headers},
      body: value === undefined ? undefined : JSON.stringify(value),
      type: isPatch ? "application/json-patch+json" : "application/json",
      again: key !== undefined || again,
      // Sent again, a write with a precondition may fail because it was applied the first time.
      isConditional: key === undefined && (ifMatch !== undefined || ifNoneMatch !== undefined),
      signal,
      accept,
    })
  }

  async #send(method, path, {url, query, headers, body, type, accept, again = true, isConditional, signal}) {
    const target = url ?? this.#url + spelled(path) + asQuery(query)
    let isUnsure = false
    for (let tries = 1; ; tries++) {
      let answer, waitMs
      try {
        const fields = await fieldsOf(this.#token, {...headers, "content-type": body && type})
        answer = await fetch(target, {method, headers: fields, body, signal})
      } catch (error) {
        if (signal?.aborted) throw error
        isUnsure = true
        if (!again || tries === TRIES) throw lost(method, error)
      }
      if (answer) {
        if (answer.ok || answer.status === accept) return answer
        const problem = await problemIn(answer)
        if (isUnsure && isConditional && answer.status === 412) throw lost(method, problem)
        isUnsure ||= UNSURE.has(answer.status)
        const mayRepeat = answer.status === 429 || (again && UNSURE.has(answer.status))
        waitMs = 1000 * (Number(answer.headers.get("retry-after")) || 0)
        if (!mayRepeat || tries === TRIES || waitMs > 30_000) throw problem
      }
      await sleep((waitMs ?? 0) + jittered(tries, 5000), signal)
    }
  }
}

/** A job that was taken. */
class Job {
  #store

  constructor(store, item) {
    this.#store = store
    Object.assign(this, item)
  }

  /** Complete it; returns whether it was still there. */
  done() {
    return this.#store.done(this)
  }

  /** Extend its lease, to `lease` from now. */
  async renew(lease) {
    await this.#store.patch(this.path, undefined, {lease, ifMatch: `"${this.lease}"`})
  }

  /** Give it back, to be taken again after `delay`. */
  async release(delay = 0, reason = undefined) {
    await this.#store.patch(this.path, reason && {reason}, {lease: 0, delay, ifMatch: `"${this.lease}"`})
  }
}

/** What is followed: an async iterable of events, {type, path, value, etag, ttl, id}. */
class Following {
  #queue = []
  #wake = () => {}
  #abort = new AbortController()
  #problem
  #isBehind = true

  constructor(url, token, path, {recursive, onEvent, onBehind}) {
    this.path = path
    this.onEvent = onEvent
    this.onBehind = onBehind
    this.#read(url + spelled(path) + asQuery({recursive}), token)
  }

  /** Whether changes may be missing for the time being: the connection is lost, or not there yet. */
  get isBehind() {
    return this.#isBehind
  }

  /** Stop following. */
  close() {
    this.#abort.abort()
    this.#wake()
  }

  async *[Symbol.asyncIterator]() {
    try {
      for (;;) {
        while (this.#queue.length) yield this.#queue.shift()
        if (this.#problem) throw this.#problem
        if (this.#abort.signal.aborted) return
        await new Promise(resolve => (this.#wake = resolve))
      }
    } finally {
      this.close()
    }
  }

  #emit(event) {
    if (this.onEvent) this.onEvent(event)
    else this.#queue.push(event)
    this.#wake()
  }

  #say(isBehind) {
    if (this.#isBehind === isBehind) return
    this.#isBehind = isBehind
    this.onBehind?.(isBehind)
  }

  async #read(target, token) {
    const {signal} = this.#abort
    let id
    for (let tries = 1; !signal.aborted; tries++) {
      let items = []
      try {
        const answer = await fetch(target, {
          headers: await fieldsOf(token, {accept: "text/event-stream", "last-event-id": id}),
          cache: "no-store",
          signal,
        })
        if (!answer.ok) throw await problemIn(answer)
        for await (const block of blocksOf(answer.body)) {
          tries = 0
          this.#say(false)
          id = block.id ?? id
          if (!block.data) continue
          const event = {type: block.event, ...JSON.parse(block.data), id}
          if (event.type === "snapshot" && event.value?.items && event.path.endsWith("/")) {
            items.push(...event.value.items)
            if (event.more) continue
            event.value = {items}
            items = []
          }
          this.#emit(event)
        }
      } catch (error) {
        if (signal.aborted) return
        if (error instanceof Problem && error.status < 500 && error.status !== 429) {
          this.#problem = error
          this.close()
          return
        }
      }
      this.#say(true)
      await sleep(jittered(tries, 30_000), signal).catch(() => {})
    }
  }
}

/** Yield the blocks of a stream, {id, event, data}, of which each may be missing; fails after SILENCE_MS without a byte. */
async function* blocksOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader()
  let text = ""
  try {
    for (;;) {
      const {done, value} = await withTimeout(reader.read(), SILENCE_MS)
      if (done) return
      const blocks = (text + value).split("\n\n")
      text = blocks.pop()
      for (const block of blocks) {
        yield Object.fromEntries(block.split("\n").map(line => line.split(/: ?(.*)/s, 2)))
      }
    }
  } finally {
    reader.cancel().catch(() => {})
  }
}

async function withTimeout(promise, ms) {
  let timer
  const late = new Promise((_, reject) => (timer = setTimeout(reject, ms, new Error("the stream is silent"))))
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}

/** Whether a write can be applied twice and leaves the same behind as applied once. */
function isRepeatable(method, value) {
  if (method === "POST") return Array.isArray(value?.requests) && value.requests.every(each => isRepeatable(each.method, each.body))
  if (method === "PATCH" && Array.isArray(value)) return false
  return !Object.values(Object(value)).some(member => member?.[".sv"])
}

async function documentIn(answer, path) {
  const text = await answer.text()
  const value = text ? JSON.parse(text) : undefined // undefined: the rules do not permit you to read it
  const expires = Date.parse(answer.headers.get("sunset"))
  let ttl = expires ? Math.max(1, (expires - Date.parse(answer.headers.get("date"))) / 1000) : null
  if (value && typeof value === "object" && !Array.isArray(value)) {
    ttl = value.ttl ?? null
    delete value.ttl
  }
  return {path, value, etag: answer.headers.get("etag"), ttl}
}

async function problemIn(answer) {
  const found = await answer.json().catch(() => ({}))
  const words = /^urn:kvstore:([a-z-]+)$/.exec(found.type)?.[1] ?? "http-error" // of a proxy in front
  const name = words.replace(/(^|-)(ttl$|[a-z])/g, (_, __, part) => part.toUpperCase())
  return new Problem(name, answer.status, found.detail ?? `the response is ${answer.status}`, found)
}

function lost(method, cause) {
  const isRead = method === "GET" || method === "QUERY"
  const detail = isRead ? "" : "; it is unknown whether the request was applied"
  return new Problem("ResponseLost", 0, `no response came from the service${detail}`, {cause})
}

async function fieldsOf(token, fields) {
  const sent = typeof token === "function" ? await token() : token
  const all = {...fields, authorization: sent && `Bearer ${sent}`}
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined && value !== null && value !== ""))
}

/** A path as it stands in a URL. Without this, URL parsing would make another path of some: it resolves dots. */
function spelled(path) {
  if (!path.startsWith("/") || /\/(\.|%2e){1,2}(\/|$)/i.test(path)) {
    throw new Problem("InvalidPath", 400, `a path begins with a slash and has no segment . or ..: ${path}`)
  }
  return path.replace(/[\0-\x20\x7f?#\\]/g, encodeURIComponent)
}

function asQuery(parameters = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== false)
  if (!given.length) return ""
  return "?" + given.map(([name, value]) => (value === true ? name : `${name}=${encodeURIComponent(value)}`)).join("&")
}

function jittered(tries, mostMs) {
  return Math.min(250 * 2 ** tries, mostMs) * (0.5 + Math.random() / 2)
}

function randomName() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16).padStart(2, "0")).join("")
}

function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms)
    signal?.addEventListener("abort", () => {
      clearTimeout(timer)
      reject(signal.reason)
    })
  })
}
