// Export and import of NDJSON, {"path","value","ttl"} a line, with progress. Nothing is held but what is on its way.

import {answer, canonical, curl, encodeSegment, lines, send} from "./api.js"
import {button, h, number, openDialog} from "./dom.js"
import {ANY_DEPTH, member, parse, write} from "./json.js"
import {Listing} from "./live.js"

const BATCH_BYTES = 500_000 // a body has at most 1 MiB
const BATCH_REQUESTS = 500
const MOST_ERRORS = 100 // that are shown

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
  const put = async (line, path, value, ttl) => {
    const target = JSON.stringify(path + (ttl ? `?ttl=${ttl}` : ""))
    const request = `{"method":"PUT","path":${target},"headers":{"Prefer":"return=minimal"},"body":${write(value)}}`
    if (bytes + request.length > BATCH_BYTES || requests.length === BATCH_REQUESTS) await flush()
    requests.push(request)
    numbers.push(line)
    bytes += request.length
  }
  const whole = async text => {
    const root = parse(text, ANY_DEPTH)
    if (!root.nodes) throw new Error("the file has one value; an object, an array or NDJSON is expected")
    for (const [i, node] of root.nodes.entries()) {
      const id = member(node, "id")
      const name = root.names?.[i] ?? (id ? (id.value ?? id.text) : String(i).padStart(6, "0"))
      await put(i + 1, container + encodeSegment(name), node)
    }
  }
  try {
    let line = 0
    let first
    for await (const text of lines(file.stream())) {
      line += 1
      read += text.length + 1
      if (!text.trim()) continue
      let node
      try {
        node = parse(text, ANY_DEPTH)
      } catch (problem) {
        if (first) {
          refuse(line, problem.message)
          continue
        }
      }
      const isLine = node && member(node, "path")?.kind === "string" && member(node, "value")
      if (!first && !isLine) {
        await whole(await file.text())
        break
      }
      first = true
      if (isLine) await put(line, canonical(member(node, "path").value), member(node, "value"), member(node, "ttl")?.text)
      else refuse(line, 'it is not {"path":…,"value":…}')
    }
    await flush()
    progress.end(`${documents(stored)} stored${bad ? `, ${number(bad)} refused:` : "."}`)
  } catch (problem) {
    if (!progress.signal.aborted) progress.end(`The import stopped after ${documents(stored)}: ${problem.detail ?? problem.message}`)
  }
}
