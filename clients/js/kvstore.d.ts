/** The client of kvstore for browsers and Node. docs/javascript.md has examples. */

/** Any JSON. Numbers are those of JavaScript: a larger integer than `Number.MAX_SAFE_INTEGER` loses digits. */
export type Json = null | boolean | number | string | Json[] | {[name: string]: Json}

/** What JSON.stringify() turns into JSON. */
export type Jsonable = unknown

/** A number of seconds, or a number with a unit: `"90s"`, `"5m"`, `"2h"`, `"7d"`. */
export type Duration = number | string

export interface Document<Value = any> {
  /** As you wrote it; in a listing as the service spells it. */
  path: string
  /** `undefined` after a write of a document that you may not read. */
  value: Value
  /** The entity-tag, with its quotes, for `ifMatch`. `null` for a hash that another Redis client has made. */
  etag: string | null
  /** The seconds until it expires; `null` if it does not. */
  ttl: number | null
}

/** An item of a listing: a document, or a container, which has a name and a path only. */
export interface Item<Value = any> extends Partial<Document<Value>> {
  /** The path below the container that is listed, percent-encoded as in the path. A container's ends with a slash. */
  name: string
  path: string
  /** Of a job: */
  state?: "ready" | "leased" | "delayed"
  attempts?: number
}

export interface Job<Value = any> {
  path: string
  value: Value
  /** How often it was taken, this time included. */
  attempts: number
  lease: string
  ttl: number | null
  /** Complete it: it is deleted. Returns whether it was still there; throws PreconditionFailed if somebody else has it. */
  done(): Promise<boolean>
  /** Extend the lease: it ends after this time from now. */
  renew(lease: Duration): Promise<void>
  /** Give it back, to be taken again after `delay`. The reason is kept if the job turns out to be dead. */
  release(delay?: Duration, reason?: string): Promise<void>
}

/** One thing that happened to what is followed. */
export interface Event<Value = any> {
  /**
   * `snapshot`: this is the state now. `put`, `patch`: a document was written. `delete`, `expire`: it is gone. `leave`: it
   * does not match the query any more.
   * `reset`: changes were lost, and a snapshot follows. `refused`: for `onEvent` only, the path may not be followed.
   */
  type: "snapshot" | "put" | "patch" | "delete" | "expire" | "leave" | "reset" | "refused"
  /** Of the document, or of what is followed for a snapshot. `reset` and `refused` have none. */
  path?: string
  /** The document's value, `null` if it is gone; in the snapshot of a container `{items}`, all of them. */
  value?: Value | {items: Item<Value>[]} | null
  etag?: string | null
  ttl?: number | null
  /** The position of the change in the log of its namespace: its entity-tag without quotes. */
  id?: string
  /** Of `refused`. */
  problem?: Problem
}

/** What is followed. It resumes by itself until it is closed; a loop that ends closes it. */
export interface Following<Value = any> extends AsyncIterable<Event<Value>> {
  close(): void
}

/** The documents of a container by name, as they change. It iterates in order of name. */
export interface LiveMap<Value = any> extends ReadonlyMap<string, Value> {
  /** Resolves to the map when it has all documents; rejects with the Problem if it may not be followed. */
  ready: Promise<LiveMap<Value>>
  close(): void
}

export interface Options {
  signal?: AbortSignal
}

export interface WriteOptions extends Options {
  /** An entity-tag with its quotes, or `"*"`: write only if the document has it. */
  ifMatch?: string
  /** `"*"`: write only if nothing is stored there. */
  ifNoneMatch?: string
  /** The name of this write: sent again with the same name, also by another program, it is not applied again. */
  idempotencyKey?: string
}

export interface StoreOptions extends WriteOptions {
  ttl?: Duration
}

export interface ListOptions extends Options {
  /** The most items in all. Pages are read as they are needed. */
  limit?: number
  /** All documents below, at any depth. */
  recursive?: boolean
  /** Start after this name. */
  after?: string
  order?: "asc" | "desc"
  /** Without values. */
  keys?: boolean
}

export interface Question extends Options {
  /** Operators by member: `{born: {lt: 1850}}`. */
  where?: {[member: string]: {[operator: string]: Jsonable}}
  /** Members to sort by, `-` for descending. */
  sort?: string[]
  fields?: string[]
  search?: string
  recursive?: boolean
  limit?: number
  after?: string
  order?: "asc" | "desc"
}

export interface FollowOptions {
  /** The snapshot of a container has all documents below it. Without `query`, changes come from any depth in any case. */
  recursive?: boolean
  /** Conditions, `search` and `fields`, as in the URL of a query: only what matches is followed. */
  query?: string | URLSearchParams
  /** Called with each event. Without it, iterate. */
  onEvent?: (event: Event) => void
}

export interface Store {
  /** The document, `null` if nothing is stored there. */
  get<Value = any>(path: string, options?: Options): Promise<Document<Value> | null>
  /** Store a document, and return it. */
  put<Value = any>(path: string, value: Value, options?: StoreOptions): Promise<Document<Value>>
  /** Change a document: an object is a merge patch, an array a JSON Patch, `undefined` with `ttl` only changes the TTL. */
  patch<Value = any>(path: string, patch: Jsonable, options?: StoreOptions): Promise<Document<Value>>
  /** Append a document to a container, and return it. `delay`: for that time no taker gets it as a job. */
  post<Value = any>(
    container: string,
    value: Value,
    options?: {ttl?: Duration; delay?: Duration; idempotencyKey?: string} & Options,
  ): Promise<Document<Value>>
  /** Delete a document; returns whether there was one. */
  delete(path: string, options?: WriteOptions & {recursive?: false}): Promise<boolean>
  /** Delete everything below a container; returns how many documents that were. */
  delete(container: string, options: {recursive: true} & Options): Promise<number>
  /** What lies directly below a container, page by page. */
  list<Value = any>(container: string, options?: ListOptions & {count?: false}): AsyncGenerator<Item<Value>>
  list(container: string, options: ListOptions & {count: true}): Promise<number>
  /** The documents of a container that match. */
  query<Value = any>(container: string, question?: Question & {count?: false}): AsyncGenerator<Item<Value>>
  query(container: string, question: Question & {count: true}): Promise<number>
  /**
   * Read a document, call `change` with its value, and write what that returns, again and again until nobody has written in
   * between. `change` gets `default` if nothing is stored. Throws ResponseLost if it is unknown whether the write was applied.
   */
  update<Value = any>(
    path: string,
    change: (value: Value) => Value | Promise<Value>,
    options?: {default?: Value; ttl?: Duration} & Options,
  ): Promise<Document<Value>>
  /** Send up to 1,000 requests at once. Atomic, the default: all are applied or none, and all are of one namespace. */
  batch(
    requests: {method: string; path: string; headers?: {[name: string]: string}; body?: Jsonable}[],
    options?: {atomic?: boolean; idempotencyKey?: string} & Options,
  ): Promise<{status: number; headers: {[name: string]: string}; body: any}[]>
  /** Take jobs from a container; `[]` if there are none. `wait`: for one to come, up to 25 seconds; `as`: who waits. */
  take<Value = any>(
    container: string,
    options?: {lease?: Duration; limit?: number; wait?: Duration; as?: Jsonable; maxAttempts?: number} & Options,
  ): Promise<Job<Value>[]>
  /** Complete a job. */
  done(job: Job): Promise<boolean>
  /** Follow a document, or everything below a container. */
  follow<Value = any>(path: string, options?: FollowOptions): Following<Value>
  /** Keep a document there for as long as this page, or program, is. */
  hold(path: string, value?: Jsonable, options?: {onEvent?: (event: Event) => void}): Following
  /** A live map of the documents in a container, with `query` of those that match. */
  map<Value = any>(
    container: string,
    options?: Omit<FollowOptions, "onEvent"> & {onChange?: (event: Event<Value>) => void},
  ): LiveMap<Value>
}

export interface ConnectOptions {
  /** A token, or a function that returns the one to use now. Without it a browser sends its session's cookie. */
  token?: string | (() => string | undefined | Promise<string | undefined>)
  /** Called with `true` when what is followed may be behind, since the stream is lost, and with `false` when it has caught up. */
  onBehind?: (isBehind: boolean) => void
}

/** Return a client. The URL is that of the service, by default that which this module was loaded from. */
export function connect(url?: string | URL, options?: ConnectOptions): Store

/**
 * A request that failed. `name` is that of the problem: `NotFound`, `PreconditionFailed`, `Forbidden`, …; of the client's own
 * are `ResponseLost` (no response came: a write may be applied or not) and `HttpError` (the response is not the service's).
 */
export class Problem extends Error {
  /** Of HTTP; 0 if no response came. */
  status: number
  /** What happened, and what to do. */
  detail: string
  /** `urn:kvstore:…` */
  type: string
  /** Members of the problem's own, such as `etag` and `current` of PreconditionFailed. */
  [member: string]: any
}
