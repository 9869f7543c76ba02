// Export and import of NDJSON, {"path","value","ttl"} a line, with progress. Nothing is held but what is on its way.

import {answer, canonical, curl, encodeSegment, lines, send} from "./api.js"
import {button, h, number, openDialog} from "./dom.js"
import {ANY_DEPTH, JSONError, member, parse, write} from "./json.js"
import {Listing} from "./live.js"

const BATCH_BYTES = 500_000 // a body has at most 1 MiB; a document that is larger is put by itself
const BATCH_REQUESTS = 500
const MOST_ERRORS = 100 // that are shown
const NAMES = ["string", "number"] // kinds of an `id` that names an item

const documents = n => `${number(n)} ${n === 1 ? "document" : "documents"}`

/** A dialog with a bar; returns {say(done, of, text), end(text), signal}. `onclose` ends what is going on. */
function openProgress(title, setCurl) {
  const ending = new AbortController()
  const bar = h("progress", {"aria-label": title})
  const text = h("p", {role: "status"})
  const close = button("Cancel", () => dialog.close())
  const dialog = openDialog(title, setCurl, bar, text, h("div", {class: "buttons"}, close))
  dialog.addEventListener("close", () => ending.abort())
  return {
    signal: ending.signal,
    text,
    say(said, done, of) {
      text.textContent = said
      if (of) Object.assign(bar, {max: of, value: done})
    },
    end(said) {
      text.textContent = said
      Object.assign(bar, {max: 1, value: 1})
      close.textContent = "Close"
    },
  }
}

/** Write all that lies below a container to a file. */
export async function exportTo(path, setCurl) {
  const headers = {Accept: "application/x-ndjson"}
  const progress = openProgress(`Export ${path}`, setCurl)
  setCurl(curl("GET", path, {query: path === "/" ? "list" : "recursive", headers}))
  const parts = []
  let count = 0, bytes = 0
  const take = async (container, query) => {
    const response = await send("GET", container, {query, headers, signal: progress.signal})
    let part = []
    for await (const line of lines(response.body)) {
      const item = parse(line, ANY_DEPTH), [at, value, ttl] = ["path", "value", "ttl"].map(name => member(item, name))
      if (!value) continue
      part.push(`{"path":${at.text},"value":${write(value)}${ttl ? `,"ttl":${ttl.text}` : ""}}\n`)
      count += 1
      bytes += line.length
      if (count % 1000) continue
      parts.push(new Blob(part)) // the browser may keep it on disk
      part = []
      progress.say(`${documents(count)}, ${number(Math.round(bytes / 1000))} kB`)
    }
    parts.push(new Blob(part))
  }
  try {
    await take(path, path === "/" ? "list" : "recursive")
    if (path === "/") {
      const root = new Listing("/", {keys: true})
      while (root.next !== null && !root.problem) await root.more()
      for (const item of root.items) if (item.isContainer) await take(item.path, "recursive")
    }
  } catch (problem) {
    if (!progress.signal.aborted) progress.end(`The export stopped: ${problem.detail ?? problem.message}`)
    return
  }
  const href = URL.createObjectURL(new Blob(parts, {type: "application/x-ndjson"}))
  const link = h("a", {href, download: `${path.replaceAll("/", " ").trim() || "kvstore"}.ndjson`})
  link.click()
  setTimeout(() => URL.revokeObjectURL(href), 60_000)
  progress.end(`${documents(count)} exported.`)
}

/** The tree of a JSON text, or the JSONError that says what is wrong with it. */
function attempt(text) {
  try {
    return parse(text, ANY_DEPTH)
  } catch (problem) {
    return problem
  }
}

/** A button that imports a file; `dropped(files)` of the page does the same. */
export function importButton(path, setCurl) {
  const input = h("input", {type: "file", accept: ".json,.ndjson,.jsonl", hidden: true, onchange: () => input.files[0] && importFile(path, input.files[0], setCurl)})
  return h("span", null, input, button("Import", () => {
    input.value = ""
    input.click()
  }))
}

/**
 * Store what is in a file. A line {"path","value"} goes to its path; of other JSON, each member or item goes below `container`,
 * by its name, or its `id`. Lines that cannot be stored are reported by number, and the rest is stored.
 */
export async function importFile(container, file, setCurl) {
  const progress = openProgress(`Import ${file.name}`, setCurl)
  setCurl(curl("POST", "/_/batch", {headers: {"Content-Type": "application/json"}, body: "@batch.json"}))
  const list = h("ul", {class: "errors"})
  progress.text.after(list)
  let stored = 0, bad = 0, read = 0
  let requests = [], numbers = [], bytes = 0
  const refuse = (line, why) => {
    bad += 1
    if (bad <= MOST_ERRORS) list.append(h("li", null, `Line ${number(line)}: ${why}`))
  }
  const flush = async () => {
    if (!requests.length) return
    const body = `{"atomic":false,"requests":[${requests.join()}]}`
    const answered = await answer(await send("POST", "/_/batch", {body, signal: progress.signal}))
    member(answered, "responses").nodes.forEach((each, i) => {
      if (Number(member(each, "status").text) < 300) stored += 1
      else refuse(numbers[i], member(member(each, "body"), "detail")?.value ?? "refused")
    })
    ;[requests, numbers, bytes] = [[], [], 0]
    progress.say(`${documents(stored)} stored`, read, file.size)
  }
  const putAlone = async (line, path, query, body) => {
    try {
      await send("PUT", path, {query, headers: {Prefer: "return=minimal"}, body, signal: progress.signal})
      stored += 1
    } catch (problem) {
      if (!(problem.status >= 400 && problem.status < 500)) throw problem
      refuse(line, problem.detail)
    }
  }
  const put = async (line, path, value, ttl) => {
    const body = write(value), query = ttl ? `ttl=${ttl}` : ""
    const target = JSON.stringify(path + (query && `?${query}`))
    const request = `{"method":"PUT","path":${target},"headers":{"Prefer":"return=minimal"},"body":${body}}`
    const size = new Blob([request]).size
    if (bytes + size > BATCH_BYTES || requests.length === BATCH_REQUESTS) await flush()
    if (size > BATCH_BYTES) return putAlone(line, path, query, body)
    requests.push(request)
    numbers.push(line)
    bytes += size
    return undefined
  }
  const whole = async root => {
    if (!root.nodes) throw new Error("the file has one value; an object, an array or NDJSON is expected")
    const names = new Set()
    for (const [i, node] of root.nodes.entries()) {
      const id = member(node, "id")
      const name = root.names?.[i] ?? (NAMES.includes(id?.kind) ? (id.value ?? id.text) : String(i).padStart(6, "0"))
      if (names.has(name)) refuse(i + 1, `the name ${name} occurs twice; only the first one is stored`)
      else await put(i + 1, container + encodeSegment(name), node)
      names.add(name)
    }
  }
  try {
    let line = 0
    let isBegun, isOfLines, broken // what the file as a whole has wrong with it
    for await (const text of lines(file.stream())) {
      line += 1
      read += text.length + 1
      if (!text.trim()) continue
      const found = attempt(text)
      const [path, value, ttl] = ["path", "value", "ttl"].map(name => member(found, name))
      const isLine = path?.kind === "string" && value
      if (!isBegun && !isLine) {
        const root = attempt(await file.text())
        if (!(root instanceof JSONError)) {
          await whole(root)
          break
        }
        broken = root
      }
      isBegun = true
      isOfLines ||= isLine
      if (isLine) await put(line, canonical(path.value), value, ttl?.kind === "null" ? "" : ttl?.text)
      else refuse(line, found instanceof JSONError ? found.message : 'it is not {"path":…,"value":…}')
    }
    if (broken && !isOfLines) {
      list.replaceChildren()
      throw new Error(`line ${number(broken.line)}, column ${number(broken.column)}: ${broken.message}`)
    }
    await flush()
    progress.end(`${documents(stored)} stored${bad ? `, ${number(bad)} refused:` : "."}`)
  } catch (problem) {
    if (!progress.signal.aborted) progress.end(`The import stopped after ${documents(stored)}: ${problem.detail ?? problem.message}`)
  }
}
