// The stream of a page. Where the browser has Web Locks, on pages with TLS and on localhost, the tabs of an origin share one: the
// tab that has the lock of its group leads, has the stream, and tells the others over a BroadcastChannel. kvstore.js loads this.
// Sources: https://www.w3.org/TR/web-locks/, https://html.spec.whatwg.org/multipage/web-messaging.html

/**
 * Return a stream as a page has it, {ask(query)}: that of this tab, or that of a group of tabs, those of one URL and token.
 * `open(tell)` opens a stream, {ask(query), end()}, which tells what happens; `hear` is told that in each tab. A page in the
 * browser's cache has no stream, and another one when it is shown again.
 */
export function join(group, hear, open) {
	const begin = group && navigator.locks ? () => share(group, hear, open) : () => open(hear)
	let stream = begin(), asked
	addEventListener("pagehide", () => (stream = stream?.end()))
	addEventListener("pageshow", () => {
		if (stream) return
		stream = begin()
		stream.ask(asked)
	})
	return {ask: query => stream?.ask((asked = query))}
}

/** A stream as a member of a group. */
function share(group, hear, open) {
	const tab = crypto.randomUUID()
	const ending = new AbortController()
	const over = new Promise(resolve => (ending.signal.onabort = resolve))
	let name, channel
	let wanted // by this tab, as soon as the others may know of it
	let tabs, stream // what each tab wants, and the stream, where this tab leads

	const hearers = {
		hear,
		asks: () => wanted !== undefined && say("wants", tab, wanted),
		wants(from, query) {
			if (!tabs) return
			if (from !== tab && !tabs.has(from)) lock(from).then(() => tabs.delete(from) && plan()) // that tab is gone
			tabs.set(from, query)
			plan()
		},
	}

	const plan = () => stream.ask([...tabs.values()].filter(Boolean).join("&"))

	function say(kind, ...said) {
		if (ending.signal.aborted) return
		channel.postMessage([kind, said])
		hearers[kind](...said)
	}

	/** Wait for a lock, and keep it until `until`; without one give it back at once. It never comes once this is over. */
	const lock = (key, until) =>
		new Promise(granted => navigator.locks.request(name + key, ending, () => (granted(), until)).catch(() => {}))

	async function enter() {
		name = `kvstore ${await digest(group)} `
		channel = new BroadcastChannel(name)
		channel.onmessage = ({data: [kind, said]}) => hearers[kind](...said)
		over.then(() => channel.close())
		await lock(tab, over) // before a leader hears of this tab, and waits for this lock
	}

	async function lead() {
		await lock("", over)
		tabs = new Map()
		stream = open(message => say("hear", message))
		say("asks")
	}

	const entered = enter()
	entered.then(lead)
	return {
		async ask(query) {
			await entered
			wanted = query
			hearers.asks()
		},
		end() {
			ending.abort()
			stream?.end()
		},
	}
}

/** A name that does not tell a token to whoever may see the names of locks. */
async function digest(text) {
	const bytes = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(text))
	return Array.from(new Uint8Array(bytes), byte => byte.toString(16).padStart(2, "0")).join("")
}
