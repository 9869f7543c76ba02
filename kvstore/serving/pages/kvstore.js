// The client of kvstore for browsers and Node; kvstore.d.ts describes it.

const TRIES = 8 // some 15 s
const SILENCE_MS = 25_000 // two heartbeats
const GATHER_MS = 50

export class Problem extends Error {
	constructor(members) {
		super(members.detail)
		const name = `${members.type}`.replace(/.*:|-?\b(ttl|.)/g, (_, part = "") => part.toUpperCase())
		Object.assign(this, members, {name})
	}
}

export function connect(url = new URL("..", import.meta.url), {token, onBehind} = {}) {
	const base = `${url}`.replace(/\/+$/, "")

	/** Send a request until there is a response, so that a write is applied once. */
	async function send(method, path, options = {}, body, read = whole) {
		let {idempotencyKey: key, ifMatch, ifNoneMatch, lastEventId, signal, ...parameters} = options
		const isSafe = isIdempotent({method, path, body})
		key ??= isSafe ? "" : randomName()
		const contentType = `application/${method === "PATCH" && Array.isArray(body) ? "json-patch+" : ""}json`
		const prefer = method === "POST" && "return=representation"
		const fields = {contentType, prefer, idempotencyKey: key, ifMatch, ifNoneMatch, lastEventId}
		for (let tries = 1, isUnsure; ; tries++) {
			const current = await (token?.call ? token() : token)
			const headers = given({...fields, authorization: current && `Bearer ${current}`}, "-")
			const asked = fetch(base + targetOf(path, parameters), {method, headers, body: JSON.stringify(body), signal})
			const answer = await asked.then(read).catch(lost)
			const {ok, status} = answer
			if (ok || (status === 404 && /GET|DELETE/.test(method))) return answer
			signal?.throwIfAborted()
			const problem = status ? await problemIn(answer, status) : answer
			if (isUnsure && status === 412 && !key) throw lost(problem) // an earlier attempt may be why
			isUnsure ||= status !== 429
			const mayRepeat = /^0|50[234]/.test(status) ? isSafe || key : status === 429
			const waitMs = 1000 * (answer.headers?.get("retry-after") ?? 0) + jittered(tries)
			if (!mayRepeat || tries === TRIES || waitMs > 60_000) throw problem
			await sleep(waitMs)
		}
	}

	const ask = (...asked) => send(...asked).then(({said}) => said)

	const writing = method => async (path, value, options) => {
		const {ok, headers, said} = await send(method, path, options, value)
		if (!ok) return null
		const field = name => headers.get(name)
		if (method === "POST") path = path.replace(/\/?$/, "/") + field("location").split("/").pop()
		const ttl = said?.ttl ?? ((Date.parse(field("sunset")) - Date.parse(field("date"))) / 1000 || null)
		delete said?.ttl
		return {path, value: said, etag: field("etag"), ttl}
	}

	function iterate(path, {limit: left = Infinity, count, signal}, first) {
		if (count) return first().then(found => found.count)
		return (async function* () {
			for (let page = await first(Math.min(left, 1000)); ; ) {
				for (const item of page.items) if (left-- > 0) yield item
				if (!page.next || left < 1) return
				page = await ask("GET", path, {query: page.next.split("?")[1], signal})
			}
		})()
	}

	const store = {
		put: writing("PUT"),
		patch: writing("PATCH"),
		post: writing("POST"),
		get: (path, options) => writing("GET")(path, undefined, options),
		async delete(path, options) {
			const {said, ok} = await send("DELETE", path, options)
			return said?.deleted ?? ok
		},
		list: (path, options = {}) =>
			iterate(path, options, limit => ask("GET", path, {list: path === "/", ...options, limit})),
		query: (path, {signal, ...asked} = {}) =>
			iterate(path, {signal, ...asked}, limit => ask("QUERY", path, {list: path === "/", signal}, {...asked, limit})),
		async update(path, change, {default: initial, ...options} = {}) {
			for (let tries = 1; ; tries++) {
				let found = await store.get(path, {signal: options.signal})
				if (found && !found.etag) found = await store.patch(path, {}, {ifMatch: "*"}).catch(unlessLate) // without a tag
				const value = await change(found ? found.value : initial)
				const conditions = {ifMatch: found?.etag, ifNoneMatch: !found && "*"}
				const written = await store.put(path, value, {...options, ...conditions}).catch(unlessLate)
				if (written) return written
				await sleep(10 * tries * Math.random())
			}
		},
		batch: async (requests, {atomic = true, ...options} = {}) =>
			(await ask("POST", "/_/batch", atomic ? options : {idempotencyKey: "", ...options}, {atomic, requests})).responses,
		async take(container, options) {
			const taken = await ask("POST", container, {lease: "30s", ...options, as: JSON.stringify(options?.as)})
			return (taken?.items ?? []).map(job => {
				const ifMatch = `"${job.lease}"`
				const change = (asked, value) => ask("PATCH", job.path, {...asked, ifMatch}, value)
				return {
					...job,
					done: () => store.delete(job.path, {ifMatch}),
					renew: lease => change({lease}),
					release: (delay, reason) => change({lease: 0, delay}, reason && {reason}),
				}
			})
		},
		done: job => job.done(),
		follow: goLive(send, !token?.call && `${base} ${token}`, onBehind),
		hold: (path, value = null, options) => store.follow(path, {onEvent() {}, ...options, as: JSON.stringify(value)}),
		map: (path, options) => liveMap(store, path, options),
	}
	return store
}

function liveMap(store, path, {onChange, ...asked} = {}) {
	const map = new Map()
	map[Symbol.iterator] = () => [...map.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).values()
	map.ready = new Promise((resolve, reject) => {
		let start // of a member's name
		function onEvent(event) {
			const {type, path = "", value} = event
			const name = path.slice(start)
			if (type === "refused") reject(event.problem)
			else if (type === "snapshot") {
				start = path.length
				map.clear()
				for (const item of value.items) if ("value" in item) map.set(item.name, item.value)
				resolve(map)
			} else if (!asked.recursive && name.includes("/")) return
			else /put|patch/.test(type) ? map.set(name, value) : map.delete(name)
			onChange?.(event)
		}
		map.close = store.follow(path, {...asked, onEvent}).close
	})
	map.ready.catch(() => {}) // who waits is told
	return map
}

/** Return follow(), over one stream of this client or, by tabs.js, of all tabs of a group. */
function goLive(send, group, onBehind) {
	const mine = new Map() // what is followed, by target
	let stream, id, isBehind

	const ask = () => stream.ask([...mine.values()].map(({asked}) => asked).join("&"))

	async function begin() {
		stream = {ask() {}}
		const open = tell => openStream(send, id, tell)
		const tabs = globalThis.document && (await import("./tabs.js").catch(() => {}))
		stream = tabs ? tabs.join(group, hear, open) : open(hear)
		ask()
	}

	function hear({id: last = id, isBehind: now = isBehind, followed, event}) {
		id = last
		if (isBehind !== (isBehind = now)) queueMicrotask(() => onBehind?.(now))
		mine.get(followed)?.feed(event)
	}

	return function follow(path, {recursive, query = "", as, onEvent} = {}) {
		const target = targetOf(path, {recursive, _: randomName()}) + `&${query}` // so that each gets a snapshot
		const asked = new URLSearchParams(as ? {path: target, hold: path, as} : {path: target})
		let queue
		const reader = new ReadableStream({start: controller => (queue = controller)}).getReader()

		function close(problem) {
			if (!mine.delete(target)) return
			ask()
			problem ? queue.error(problem) : queue.close()
		}

		function feed(event) {
			if (event.problem) close((event.problem = new Problem(event.problem)))
			if (onEvent) queueMicrotask(() => onEvent(event))
			else if (!event.problem) queue.enqueue(event)
		}

		mine.set(target, {asked, feed})
		stream ? ask() : begin()
		const iterator = {next: () => reader.read(), return: async () => ({done: true, value: close()})}
		return {close: () => close(), [Symbol.asyncIterator]: () => iterator}
	}
}

/** A stream of what was asked for last, which comes back. */
function openStream(send, id, tell) {
	let query, last, timer

	async function open() {
		const before = last
		const current = (last = new AbortController())
		while (current === last) {
			try {
				if (!query) return
				const answer = await send("GET", "/_/follow", {query, lastEventId: id, signal: current.signal}, undefined, null)
				before?.abort() // not earlier: what it holds would go
				const parts = {} // of long snapshots
				for await (const block of blocksOf(answer.body)) {
					if (current !== last) return
					id = block.id ?? id
					const {followed, more, ...event} = {type: block.event, ...JSON.parse(block.data ?? "{}")}
					const items = (parts[followed] ??= [])
					if (more) items.push(...event.value.items)
					else if (followed) {
						if (items[0]) event.value.items = items.splice(0).concat(event.value.items)
						tell({id, followed, event: {...event, id: event.etag?.slice(1, -1)}})
					} else if (block.id) tell({id, isBehind: false})
				}
			} catch (problem) {
				if (current === last && /^4(?!08|29)/.test(problem.status)) refuse({...problem})
			} finally {
				before?.abort()
			}
			if (current !== last) return
			tell({isBehind: true})
			await sleep(jittered(3))
		}
	}

	function refuse(problem) {
		const {path, status} = problem
		const targets = new URLSearchParams(query).getAll("path")
		const plain = text => decodeURIComponent(text.split("?")[0])
		const isMeant = target => (path ? plain(target) === plain(path) : status === 401 || target === targets.at(-1))
		for (const followed of targets.filter(isMeant)) tell({followed, event: {type: "refused", problem}})
	}

	function ask(asked) {
		clearTimeout(timer)
		timer = setTimeout(() => query !== (query = asked) && open(), GATHER_MS)
	}

	function end() {
		clearTimeout(timer)
		last = last?.abort()
	}

	return {ask, end}
}

async function* blocksOf(body) {
	const reader = body.pipeThrough(new TextDecoderStream()).getReader()
	for (let text = ""; ; ) {
		const timer = setTimeout(() => reader.cancel(), SILENCE_MS)
		const {done, value} = await reader.read().finally(() => clearTimeout(timer))
		if (done) return
		const blocks = (text + value).split("\n\n")
		text = blocks.pop()
		for (const block of blocks) yield Object.fromEntries(block.split("\n").map(line => line.split(/: (.*)/s, 2)))
	}
}

/** Whether a request may be applied twice. */
function isIdempotent({method, path, body}) {
	if (path === "/_/batch") return body.requests.every(isIdempotent)
	if (method === "POST") return body === undefined // a take, whose leases end
	return !(method === "PATCH" && Array.isArray(body)) && !Object.values(Object(body)).some(member => member?.[".sv"])
}

/** A response with what its body says, all of it. */
const whole = async answer => Object.assign(answer, {said: answer.ok && JSON.parse((await answer.text()) || null)})

async function problemIn(answer, status) {
	const members = await answer.json().catch(() => {})
	delete members?.current?.ttl
	return new Problem({type: "HttpError", detail: `the status is ${status}`, ...members, status})
}

function unlessLate(problem) {
	if (problem.status !== 412) throw problem
}

const lost = cause => new Problem({type: "ResponseLost", status: 0, detail: "a write may be applied or not", cause})

function targetOf(path, {query, ...parameters}) {
	// A URL keeps no `.` and `..`.
	if (/^(?!\/)|\/(\.|%2e){1,2}(\/|$)/i.test(path) || !decodeURIComponent(path)) throw new TypeError(`no path: ${path}`)
	query ??= new URLSearchParams(given(parameters, "_"))
	return path.replace(/[\0-\x20\x7f?#\\]/g, encodeURIComponent) + `?${query}`.replace(/\?$/, "")
}

/** Options as headers or parameters. */
function given(options, joint) {
	const some = Object.entries(options).filter(([, value]) => value || value === 0)
	return some.map(([name, value]) => [name.replace(/[A-Z]/g, `${joint}$&`).toLowerCase(), value === true ? "" : value])
}

const jittered = tries => Math.min(250 * 2 ** tries, 5000) * (0.5 + Math.random() / 2)
const randomName = () => crypto.getRandomValues(new Uint32Array(2)).join("")
const sleep = ms => new Promise(resolve => setTimeout(resolve, ms))
