// The client of kvstore for browsers and Node. kvstore.d.ts says what each part does; docs/javascript.md has examples.

const TRIES = 8 // of a request: some 15 s, in which a server starts again
const SILENCE_MS = 25_000 // on a stream, which has a heartbeat every 12 s
const GATHER_MS = 50 // in which a page and the other tabs say what they follow

export class Problem extends Error {
  constructor({type, ...members}) {
    super(members.detail)
    const name = `${type}`.replace(/.*:|-?\b(ttl|.)/g, (_, part = "") => part.toUpperCase())
    Object.assign(this, members, {type, name})
  }
}

export function connect(url = new URL("..", import.meta.url), {token, onBehind} = {}) {
  const base = `${url}`.replace(/\/+$/, "")

  async function request(target, {headers, ...more}) {
    const sent = await (token?.call ? token() : token)
    const fields = Object.entries({...headers, authorization: sent && `Bearer ${sent}`}).filter(([, value]) => value)
    return fetch(base + target, {...more, headers: Object.fromEntries(fields)})
  }

  /** Send a request until there is a response, so that a write is applied once. Other options are parameters. */
  async function send(method, path, value, {ifMatch, ifNoneMatch, idempotencyKey, signal, ...parameters} = {}) {
    const isBatch = path === "/_/batch"
    const isSafe = (isBatch ? value.requests : [{method, body: value}]).every(isIdempotent)
    const key = idempotencyKey ?? (isSafe || (isBatch && !value.atomic) ? "" : randomName())
    const type = method === "PATCH" && Array.isArray(value) ? "application/json-patch+json" : "application/json"
    const headers = {"content-type": type, "if-match": ifMatch, "if-none-match": ifNoneMatch, "idempotency-key": key}
    if (method === "POST") headers.prefer = "return=representation"
    const target = targetOf(path, parameters)
    for (let tries = 1, isUnsure; ; tries++) {
      const answer = await request(target, {method, headers, body: JSON.stringify(value), signal}).catch(lost)
      const {ok, status} = answer
      if (ok || (status === 404 && /GET|DELETE/.test(method))) return answer
      signal?.throwIfAborted()
      const problem = status ? await problemIn(answer) : answer
      if (isUnsure && status === 412 && !key) throw lost(problem) // an earlier attempt may have changed the entity-tag
      isUnsure ||= status !== 429
      const mayRepeat = status === 429 || ([0, 502, 503, 504].includes(status) && (isSafe || key))
      const waitMs = 1000 * (answer.headers?.get("retry-after") ?? 0) + jittered(tries, 5000)
      if (!mayRepeat || tries === TRIES || waitMs > 60_000) throw problem
      await sleep(waitMs)
    }
  }

  const sendJson = async (...asked) => (await send(...asked)).json()
  const writing = method => async (path, value, options) => documentIn(await send(method, path, value, options), method, path)

  function iterate(path, {limit: left = Infinity, count, signal}, ask) {
    if (count) return ask().then(found => found.count)
    return (async function* () {
      for (let page = await ask(Math.min(left, 1000)); left > 0; ) {
        for (const item of page.items) if (left-- > 0) yield item
        if (!page.next) return
        page = await sendJson("GET", path, undefined, {...Object.fromEntries(new URL(page.next, base).searchParams), signal})
      }
    })()
  }

  // A function may return another token in another tab, so they do not share a stream.
  const live = goLive(request, `kvstore ${base} ${token?.call ? randomName() : token} `, onBehind)
  const store = {
    put: writing("PUT"),
    patch: writing("PATCH"),
    post: writing("POST"),
    get: (path, options) => writing("GET")(path, undefined, options),
    async delete(path, options) {
      const answer = await send("DELETE", path, undefined, options)
      return options?.recursive ? (await answer.json()).deleted : answer.ok
    },
    list: (path, options = {}) =>
      iterate(path, options, limit => sendJson("GET", path, undefined, {list: path === "/", ...options, limit})),
    query: (path, {signal, ...asked} = {}) =>
      iterate(path, {signal, ...asked}, limit => sendJson("QUERY", path, {...asked, limit}, {signal})),
    async update(path, change, {default: initial, ...options} = {}) {
      for (let tries = -5; ; tries++) {
        let found = await store.get(path)
        if (found && !found.etag) found = await unlessLate(store.patch(path, {}, {ifMatch: "*"})) // it has no tag
        const value = await change(found ? found.value : initial)
        const condition = found ? {ifMatch: found.etag} : {ifNoneMatch: "*"}
        const written = await unlessLate(store.put(path, value, {...options, ...condition}))
        if (written) return written
        await sleep(jittered(tries, 500))
      }
    },
    batch: async (requests, {atomic = true, ...options} = {}) =>
      (await sendJson("POST", "/_/batch", {atomic, requests}, options)).responses,
    async take(container, options) {
      const answer = await send("POST", container, undefined, {lease: "30s", ...options})
      const {items} = answer.status === 204 ? {items: []} : await answer.json()
      return items.map(job => {
        const ifMatch = `"${job.lease}"`
        const change = async (value, options) => void (await send("PATCH", job.path, value, {...options, ifMatch}))
        const release = (delay, reason) => change(reason && {reason}, {lease: 0, delay})
        return {...job, done: () => store.delete(job.path, {ifMatch}), renew: lease => change(undefined, {lease}), release}
      })
    },
    done: job => job.done(),
    follow: (path, options) => follow(live, path, options),
    hold: (path, value = null, options) => follow(live, path, {onEvent() {}, ...options, held: JSON.stringify(value)}),
    map: (path, options) => liveMap(live, path, options),
  }
  return store
}

function follow(live, path, {recursive, held, onEvent} = {}) {
  const target = targetOf(path, {recursive, _: randomName()}) // like no other, so that each gets a snapshot
  const items = new Map() // of a snapshot of which there is more to come
  let tag, hasBegun, queue
  const reader = new ReadableStream({start: controller => (queue = controller)}).getReader()
  const emit = event => (onEvent ? queueMicrotask(() => onEvent(event)) : queue.enqueue(event))

  function close(problem) {
    if (!live.remove(target)) return
    if (!problem) return queue.close()
    if (onEvent) emit({type: "refused", path, problem})
    else queue.error(problem)
  }

  function feed({followed, more, ...event}) {
    const {type, value, etag} = event
    if (type === "snapshot") {
      if (event.path.endsWith("/")) {
        if (tag !== (tag = etag)) items.clear() // the one before was cut off
        for (const item of value.items) items.set(item.path, item)
        if (more) return
        value.items = [...items.values()]
      }
      if (hasBegun) emit({type: "reset"}) // as each loss is
    }
    hasBegun = type !== "reset"
    emit({...event, id: etag?.slice(1, -1)})
  }

  live.add(target, {held, feed, close})
  const iterator = {next: () => reader.read(), return: async () => ({done: true, value: close()})}
  return {close: () => close(), [Symbol.asyncIterator]: () => iterator}
}

function liveMap(live, path, {recursive, onChange} = {}) {
  const map = new Map()
  map[Symbol.iterator] = () => [...map.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).values()
  map.ready = new Promise((resolve, reject) => {
    let start // of a name in the path of a member
    const onEvent = event => {
      const {type, value} = event
      const name = event.path?.slice(start)
      if (type === "refused") reject(event.problem)
      else if (type === "snapshot") {
        start = event.path.length
        map.clear()
        for (const item of value.items) if ("value" in item) map.set(item.name, item.value)
        resolve(map)
      } else if (!recursive && name?.includes("/")) return
      else if (/put|patch/.test(type)) map.set(name, value)
      else map.delete(name)
      onChange?.(event)
    }
    map.close = follow(live, path, {recursive, onEvent}).close
  })
  map.ready.catch(() => {}) // for who does not wait for it
  return map
}

/** All that a client follows, on one stream. Of the tabs that share a `name` one leads: it has the stream of all of them. */
function goLive(request, name, onBehind) {
  const {BroadcastChannel, location, navigator} = globalThis
  const locks = location && BroadcastChannel && navigator?.locks
  const mine = new Map() // what this tab follows, by target
  const tab = randomName()
  let tabs // what each tab follows, where this one leads
  let query, id, isBehind, isKnown, stream, channel, quit, timer

  const heard = {
    asks() {
      if (isKnown) say("wants", tab, [...mine].map(([target, {held}]) => [target, held]))
    },
    event: (target, event) => mine.get(target)?.feed(event),
    refused: (target, problem) => mine.get(target)?.close(new Problem(problem)),
    at(last, now = isBehind) {
      id = last
      if (onBehind && isBehind !== now) queueMicrotask(() => onBehind(now))
      isBehind = now
    },
    wants(from, wants) {
      if (!tabs) return
      if (from !== tab && !tabs.has(from)) locks.request(name + from, () => tabs?.delete(from) && plan()) // it is gone
      tabs.set(from, wants)
      clearTimeout(timer)
      timer = setTimeout(plan, GATHER_MS)
    },
  }
  const hear = ([kind, ...said]) => heard[kind](...said)
  function say(...message) {
    channel?.postMessage(message)
    hear(message)
  }

  function begin() {
    const {signal} = (quit = new AbortController())
    const over = new Promise(resolve => signal.addEventListener("abort", resolve))
    const enter = () => {
      isKnown = true
      heard.asks()
      return over
    }
    const lead = () => {
      tabs = new Map()
      say("asks")
      return over
    }
    if (!locks) return lead(enter())
    channel = new BroadcastChannel(name)
    channel.onmessage = ({data}) => hear(data)
    locks.request(name + tab, {signal}, enter).catch(() => {}) // who leads waits for its end, once it has heard of it
    locks.request(name, {signal}, lead).catch(() => {})
  }

  function plan() {
    const asked = new URLSearchParams()
    for (const [target, held] of [...tabs.values()].flat()) {
      asked.append("path", target)
      if (held) asked.append("hold", pathIn(target)), asked.append("as", held)
    }
    if (query !== (query = `${asked}`)) open()
  }

  async function open(tries = 1) {
    const before = stream
    const abort = (stream = new AbortController())
    let waitMs = jittered(tries, 30_000)
    try {
      if (!query) return
      const headers = {accept: "text/event-stream", "last-event-id": id}
      const answer = await request(`/_/follow?${query}`, {headers, cache: "no-store", signal: abort.signal})
      before?.abort() // not earlier: what it holds would go
      if (!answer.ok) throw await problemIn(answer)
      for await (const {id, event, data, retry} of blocksOf(answer.body, abort)) {
        if (stream !== abort) return // another one goes on
        waitMs = retry ?? waitMs
        const found = data && JSON.parse(data)
        if (data) say("event", found.followed, {type: event, ...found})
        else if (id) tries = 0 // all paths have begun
        if (id) say("at", id, data ? undefined : false)
      }
    } catch ({status, path, ...problem}) {
      if (stream === abort && /^4(?!08|29)/.test(status)) {
        const targets = new URLSearchParams(query).getAll("path")
        const isMeant = target => !path || decodeURIComponent(pathIn(target)) === decodeURIComponent(path)
        const meant = status === 414 && !path ? targets.slice(-1) : targets.filter(isMeant)
        for (const target of meant) say("refused", target, {...problem, status, path})
      }
    } finally {
      before?.abort()
    }
    if (stream !== abort) return
    say("at", id, true)
    await sleep(waitMs)
    if (stream === abort) open(tries + 1)
  }

  // A page in the browser's cache has no stream.
  globalThis.addEventListener?.("pagehide", () => {
    quit?.abort()
    stream?.abort()
    channel?.close()
    clearTimeout(timer)
    quit = stream = channel = tabs = query = isKnown = undefined
  })
  globalThis.addEventListener?.("pageshow", () => mine.size && begin())

  return {
    add(target, following) {
      mine.set(target, following)
      quit ? heard.asks() : begin()
    },
    remove: target => mine.delete(target) && (heard.asks(), true),
  }
}

async function* blocksOf(body, abort) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader()
  for (let text = ""; ; ) {
    const timer = setTimeout(() => abort.abort(), SILENCE_MS)
    const {done, value} = await reader.read().finally(() => clearTimeout(timer))
    if (done) return
    const blocks = (text + value).split("\n\n")
    text = blocks.pop()
    for (const block of blocks) yield Object.fromEntries(block.split("\n").map(line => line.split(/: (.*)/, 2)))
  }
}

/** Whether a request that is applied twice leaves behind what it does when it is applied once. */
function isIdempotent({method, body}) {
  if (method === "POST") return body === undefined // a take: what a lost response has leased is free when the lease ends
  return !(method === "PATCH" && Array.isArray(body)) && !Object.values(Object(body)).some(member => member?.[".sv"])
}

async function documentIn(answer, method, path) {
  if (!answer.ok) return null
  const field = name => answer.headers.get(name)
  const text = await answer.text()
  const value = text ? JSON.parse(text) : undefined // undefined: you may write it and not read it
  const ttl = value?.ttl ?? ((Date.parse(field("sunset")) - Date.parse(field("date"))) / 1000 || null)
  delete value?.ttl
  if (method === "POST") path = path.replace(/\/?$/, "/") + field("location").split("/").pop()
  return {path, value, etag: field("etag"), ttl}
}

async function problemIn(answer) {
  const {status} = answer
  const members = Object(await answer.json().catch(() => null)) // null: it is a proxy's
  delete members.current?.ttl
  return new Problem({type: "HttpError", detail: `the status is ${status}`, ...members, status})
}

const unlessLate = asked => asked.catch(problem => (problem.status === 412 ? null : Promise.reject(problem)))

const lost = cause => new Problem({type: "ResponseLost", status: 0, detail: "no response: a write may be applied or not", cause})

/** A path and parameters as a URL has them. Parsing a URL would resolve dots: that is another path. */
function targetOf(path, parameters) {
  if (!/^\//.test(path) || /\/(\.|%2e){1,2}(\/|$)/i.test(path)) throw new TypeError(`a path begins with / and has no . or ..: ${path}`)
  const query = new URLSearchParams()
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== undefined && value !== false) query.set(name.replace(/[A-Z]/, "_$&").toLowerCase(), value === true ? "" : value)
  }
  return path.replace(/[\0-\x20\x7f?#\\]/g, encodeURIComponent) + `?${query}`.replace(/\?$/, "")
}

const pathIn = target => target.split("?")[0]
const jittered = (tries, mostMs) => Math.min(250 * 2 ** tries, mostMs) * (0.5 + Math.random() / 2)
const randomName = () => crypto.getRandomValues(new Uint32Array(2)).join("")
const sleep = ms => new Promise(resolve => setTimeout(resolve, ms))
