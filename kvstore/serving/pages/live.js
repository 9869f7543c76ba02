// What others change: one stream for each place that is on the screen, and a listing that changes are applied to.

import {answer, expiry, follow, send} from "./api.js"
import {member} from "./json.js"

// A browser opens six connections to a service, for all of its windows together: four are for streams, two for other requests.
const SLOTS = ["kvstore-0", "kvstore-1", "kvstore-2", "kvstore-3"]
const MAX_STREAMS = 2 // of one window
export const POLL_MS = 3000 // between two looks at what has no stream
const FIRST_PAGE = 200 // documents that are asked for at first
const PAGE = 1000 // documents or names after that: the most there may be
const MAX_REFRESHED = 2000 // items that are listed again after a loss; those after them are listed when they are scrolled to
const MAX_ASKED = 1000 // matches that are asked for again after a change: each page of a sort reads the whole container
const REST_MS = 300 // between a change and the question, and longer where an answer takes long

const events = new EventTarget()
const streams = new Map() // by path: {controller, state, begun}
const refused = new Set() // paths that may not be followed with this token

/** Call a function with every event: {type, path, etag, expires, node, id}, or {type: "reset", path}. */
export function onEvent(call) {
  events.addEventListener("change", ({detail}) => call(detail))
}

export function onState(call) {
  events.addEventListener("state", () => call(state()))
}

/** The worst state of all streams: "live", "lost", or "idle" without any. */
function state() {
  const states = [...streams.values()].map(each => each.state)
  return ["lost", "live"].find(each => states.includes(each)) ?? "idle"
}

const emit = detail => events.dispatchEvent(new CustomEvent("change", {detail}))
const moved = () => events.dispatchEvent(new Event("state"))

/** Where to follow what is needed for a path, from the widest on: its namespace, each container, the document itself. */
function places(path) {
  const parts = path.split("/").slice(1)
  const containers = parts.slice(0, -1).map((_, i) => `/${parts.slice(0, i + 1).join("/")}/`)
  return path.endsWith("/") ? containers : [...containers, path]
}

/** Whether what is followed at a path is a document: the root container has no stream. */
const isDocument = path => path === "/" || !path.endsWith("/")

/**
 * Follow what is at or below a path, and what is beside it where that is permitted. Events from then on are emitted. `/` is the
 * root document where `withRoot` is true, and nothing otherwise.
 */
export async function watch(path, withRoot = false) {
  for (const place of path === "/" ? (withRoot ? ["/"] : []) : places(path)) {
    if (refused.has(place)) continue
    const stream = streams.get(place) ?? {controller: new AbortController(), state: "live"}
    stream.begun ??= begin(place, stream)
    streams.delete(place)
    streams.set(place, stream) // the one that was asked for last comes last
    for (const other of [...streams.keys()].slice(0, -MAX_STREAMS)) close(other)
    if (await stream.begun) return
  }
}

/** Whether changes at or below a path are emitted. */
export const isWatched = path => (path === "/" ? ["/"] : places(path)).some(place => streams.has(place))

/** Open a stream where changes are logged from now on. Returns whether that is permitted. */
async function begin(place, stream) {
  try {
    await takeSlot(stream.controller.signal, () => close(place))
    run(place, stream, await positionOf(place))
    return true
  } catch (problem) {
    close(place)
    if (problem.status !== 401 && problem.status !== 403) throw problem
    refused.add(place)
    return false
  }
}

const mine = new Set() // slots of this window

/** Take a slot until `signal` is aborted: a free one, or else that of another window, where `stolen` is called. */
async function takeSlot(signal, stolen) {
  const {locks} = navigator // which a browser has where the connection is safe
  if (!locks) return
  const take = (name, options) => new Promise(resolve => {
    const held = lock => {
      resolve(Boolean(lock))
      if (!lock) return null
      mine.add(name)
      return new Promise(end => (signal.aborted ? end() : signal.addEventListener("abort", end))).then(() => mine.delete(name))
    }
    locks.request(name, options, held).catch(() => {
      mine.delete(name)
      stolen()
    })
  })
  const others = SLOTS.filter(name => !mine.has(name))
  for (const name of others) if (await take(name, {ifAvailable: true})) return
  await take(others[Math.floor(Math.random() * others.length)], {steal: true})
}

/** Return the position from which to follow: null for the end of a log that is not there, "" where nothing else is there either. */
async function positionOf(place) {
  if (isDocument(place)) return (await send("HEAD", place).catch(error => absent(error)))?.headers.get("ETag")?.replaceAll('"', "")
  const response = await send("GET", place, {query: "keys&limit=1"})
  const tag = response.headers.get("ETag")?.replaceAll('"', "")
  if (tag !== "0-0") return tag
  return member(await answer(response), "items").nodes.length ? null : ""
}

function absent(error) {
  if (error.status === 404) return null
  throw error
}

function run(place, {controller}, position) {
  const on = {
    event(event) {
      if (event.type !== "snapshot") return emit(event)
      const found = isDocument(event.path) ? [event] : position === "" ? member(event.node, "items").nodes.map(node => read(node)) : []
      for (const each of found) if (each.etag) emit({id: each.etag, ...each, type: "put"}) // it was made before the stream began
      return undefined
    },
    reset() {
      // The snapshot that would follow may be long: list what is on the screen instead, and follow from there.
      close(place)
      watch(place).catch(() => {}).finally(() => emit({type: "reset", path: place}))
    },
    state(is) {
      const stream = streams.get(place)
      if (stream) stream.state = is
      moved()
    },
  }
  follow(place, position, controller.signal, on, position === "" ? "recursive" : "").then(problem => problem && close(place))
}

function close(place) {
  streams.get(place)?.controller.abort()
  streams.delete(place)
  moved()
}

/** End all streams: another token asks from now on. */
export function closeAll() {
  refused.clear()
  for (const place of [...streams.keys()]) close(place)
}

/** Whether an id of the log, or an entity-tag, comes after another. */
export function isAfter(a, b) {
  if (!a || !b) return true
  const [[ms, n], [otherMs, otherN]] = [a, b].map(each => each.replaceAll('"', "").split("-").map(Number))
  return ms > otherMs || (ms === otherMs && n > otherN)
}

export const isGone = event => event.type === "delete" || event.type === "expire"

/**
 * What lies directly below a container, as far as it was loaded: `items` in order of name, and `next`, the query of the next
 * page (null: there is none); `takers`, who waits for a job. An item is {name, path, isContainer, etag, ttl, expires, node, state, attempts, marked, gone}; `ttl` in s is that of
 * when it was seen last.
 */
export class Listing {
  constructor(path, {keys = false, descending = false, changed = () => {}} = {}) {
    const words = [path === "/" && "list", keys && "keys", descending && "order=desc"].filter(Boolean)
    this.first = [...words, `limit=${keys ? PAGE : FIRST_PAGE}`].join("&")
    Object.assign(this, {path, descending, changed, items: [], next: this.first, takers: [], problem: null, pending: null})
    this.asking = 0 // requests whose answers have not come
    this.meanwhile = [] // events since the first of them: an answer may be older
  }

  /** Load the next page; one at a time. */
  more() {
    if (this.next === null || this.problem) return this.pending
    this.pending ??= this.load().finally(() => (this.pending = null))
    return this.pending
  }

  async load() {
    await this.asked(async () => {
      try {
        const {items, next} = await this.page(this.next)
        for (const item of items) this.put(item)
        this.next = next
      } catch (problem) {
        this.problem = problem
      }
    })
  }

  /** Ask, and apply what came meanwhile once more to the answer. */
  async asked(ask) {
    this.asking += 1
    await ask()
    this.asking -= 1
    const events = this.asking ? this.meanwhile : this.meanwhile.splice(0)
    for (const event of [...events]) this.apply(event, true)
    this.changed()
  }

  async page(query) {
    const tree = await answer(await send("GET", this.path, {query, signal: this.signal}))
    const next = member(tree, "next")?.value
    if (query === this.first) this.takers = member(tree, "takers")?.nodes ?? []
    return {items: member(tree, "items").nodes.map(node => read(node)), next: next ? next.slice(next.indexOf("?") + 1).replace(/\blimit=\d+/, `limit=${PAGE}`) : null}
  }

  /** List again what was listed, and mark what is different. */
  async refresh() {
    this.isStale = true
    this.refreshing ??= this.refreshUntilFresh().finally(() => (this.refreshing = null))
    return this.refreshing
  }

  /** One listing at a time: the answer of an earlier one may come later. */
  async refreshUntilFresh() {
    if (this.pending) await this.pending
    while (this.isStale) {
      this.isStale = false
      await this.asked(() => this.listAgain())
    }
  }

  async listAgain() {
    const fresh = []
    let query = this.first
    try {
      do {
        const {items, next} = await this.page(query)
        fresh.push(...items)
        query = next
      } while (query && fresh.length < Math.min(this.items.length, MAX_REFRESHED))
    } catch (problem) {
      if (problem.status) this.problem = problem
      return
    }
    const old = new Map(this.items.map(item => [item.name, item]))
    const isNew = this.next !== this.first
    this.items = fresh.map(item => {
      const before = old.get(item.name)
      const marked = isNew && (!before || before.etag !== item.etag) ? Date.now() : before?.marked
      return Object.assign(before ?? {}, item, {marked, gone: false})
    })
    this.problem = null
    this.next = query
    for (const item of old.values()) if (item.isPinned && !this.find(item.name)) this.put(item)
  }

  index(name) {
    let low = 0, high = this.items.length
    while (low < high) {
      const middle = (low + high) >> 1
      const isBefore = this.descending ? this.items[middle].name > name : this.items[middle].name < name
      if (isBefore) low = middle + 1
      else high = middle
    }
    return low
  }

  find(name) {
    const item = this.items[this.index(name)]
    return item?.name === name ? item : null
  }

  put(item) {
    const index = this.index(item.name)
    if (this.items[index]?.name === item.name) return Object.assign(this.items[index], item)
    this.items.splice(index, 0, item)
    return item
  }

  /** Show an item that may lie beyond what was loaded. */
  pin(name) {
    return this.find(name) ?? this.put({...read(null, name, this.path + name), isPinned: true})
  }

  remove(item) {
    const index = this.items.indexOf(item)
    if (index >= 0) this.items.splice(index, 1)
    this.changed()
  }

  /** Apply an event. Returns the item that it concerns: the document, or the container that it lies in; null for none. */
  apply(event, isAgain = false) {
    if (!event.path.startsWith(this.path) || event.path === this.path) return null
    if (this.asking && !isAgain) this.meanwhile.push(event)
    const rest = event.path.slice(this.path.length), slash = rest.indexOf("/")
    const name = slash < 0 ? rest : rest.slice(0, slash + 1)
    let item = this.find(name)
    if (!item) {
      const index = this.index(name), isLoaded = this.next === null || index < this.items.length
      if (isGone(event) || !isLoaded) return null
      item = this.put(read(null, name, this.path + name))
      item.isNew = true
    } else if (slash < 0 && item.etag && !isAfter(event.id, item.etag)) return item
    item.marked = Date.now()
    if (slash < 0) {
      if (isGone(event)) {
        item.gone = true
        setTimeout(() => item.gone && this.remove(item), 1500)
      } else Object.assign(item, {etag: event.etag, ttl: event.ttl, expires: event.expires, node: event.node, gone: false})
    }
    this.changed()
    return item
  }
}

/**
 * The documents below a container that a question finds, in the order of its sort, page by page. What is shown is changed in
 * place; which documents match, and where they stand, only the service can say, so it is asked again after a change.
 */
export class Matches extends Listing {
  constructor(path, question, changed) {
    super(path, {changed})
    this.first = this.next = `${question}&limit=${FIRST_PAGE}`
    Object.assign(this, {byName: new Map(), ending: new AbortController(), timer: null, tookMs: 0, isOld: false})
    this.signal = this.ending.signal // a large container takes as long as it takes
  }

  close() {
    this.ending.abort()
    clearTimeout(this.timer)
  }

  async page(query) {
    const began = performance.now()
    const page = await super.page(query)
    this.tookMs = performance.now() - began
    return page
  }

  find(name) {
    return this.byName.get(name) ?? null
  }

  put(item) {
    const known = this.find(item.name)
    if (known) return Object.assign(known, item)
    this.byName.set(item.name, item)
    this.items.push(item)
    return item
  }

  remove(item) {
    this.byName.delete(item.name)
    super.remove(item)
  }

  async listAgain() {
    await super.listAgain()
    this.byName = new Map(this.items.map(item => [item.name, item]))
  }

  /** Ask again soon; where much is shown, only when somebody wants that. */
  refresh() {
    if (this.items.length > MAX_ASKED) {
      this.isOld = true
      return this.changed()
    }
    this.timer ??= setTimeout(() => this.again(), Math.max(REST_MS, 2 * this.tookMs))
    return undefined
  }

  again() {
    this.timer = null
    this.isOld = false
    return super.refresh()
  }

  apply(event, isAgain = false) {
    const name = event.path.slice(this.path.length)
    if (!event.path.startsWith(this.path) || !name || name.includes("/")) return
    if (this.find(name)) super.apply(event, isAgain)
    if (!isAgain && !isGone(event)) this.refresh()
  }
}

function read(node, name = member(node, "name").value, path = member(node, "path").value) {
  const ttl = Number(node && member(node, "ttl")?.text) || Infinity
  return {
    name,
    path,
    isContainer: name.endsWith("/"),
    etag: node && member(node, "etag")?.value,
    ttl,
    expires: expiry(ttl),
    node: node && member(node, "value"),
    state: node && member(node, "state")?.value,
    attempts: node && member(node, "attempts")?.text,
  }
}
