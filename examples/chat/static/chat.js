// The page of the chat. All that is said, read and shown goes through the store's own client; the rules say what may.

import {connect} from "/_/kvstore.js"

const PAGE = 15 // messages that are shown at first, and with each click for older ones
const TYPING_S = 5 // for which somebody is shown as typing after a key
const LEFT_MS = 3000 // after which who is gone has left, and does not only load the page again

const $ = selector => document.querySelector(selector)
const isWide = matchMedia("(min-width: 700px)")

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties)
  made.append(...children)
  return made
}

async function ask(path, body) {
  const answer = await fetch(path, {method: "POST", headers: {"content-type": "application/json"}, body: JSON.stringify(body)})
  if (answer.ok) return
  const {message} = await answer.json().catch(() => ({}))
  throw new Error(message ?? `That did not work: ${answer.status}`)
}

/** Another tab of this browser is somebody else now, or nobody, and so is this one. */
function becomes(who) {
  localStorage.setItem("who", who + Date.now())
  location.reload()
}
addEventListener("storage", ({key}) => key === "who" && location.reload())

// --- Who somebody is

function showLogin() {
  const form = $("#login")
  const {username, password} = form.elements
  const demo = ["Pablo", "Joe", "Mary", "Alex"].map(textContent => {
    const onclick = () => {
      username.value = textContent
      password.value = "password123"
      form.requestSubmit()
    }
    return element("button", {type: "button", textContent, onclick})
  })
  $("#demo").replaceChildren(...demo)
  form.hidden = false
  form.onsubmit = async event => {
    event.preventDefault()
    try {
      await ask("/login", {username: username.value, password: password.value})
      becomes(username.value)
    } catch ({message}) {
      form.querySelector(".problem").textContent = message
    }
  }
}

/** Who this is, as soon as the application can say. */
async function whoAmI() {
  for (;;) {
    const answer = await fetch("/me").catch(() => null)
    if (answer?.ok) return answer.json()
    document.title = "Chat: connecting…"
    await new Promise(resolve => setTimeout(resolve, 2000))
  }
}

const me = await whoAmI()
if (me) showChat()
else showLogin()

function showChat() {
  const store = connect(location.origin, {
    onBehind: isBehind => ($("#state").textContent = isBehind ? "Connecting…" : ""),
  })
  const inbox = `/chat/inbox/${me.id}/`
  const failed = ({status, detail, message}) => {
    if (status === 401) location.reload()
    $("#chat .problem").textContent = detail ?? message
  }

  // --- Rooms: General, which is followed all the time, and the private one that is open

  /** Follow a room. Its messages are read in pages, since a stream of their container would begin with all of them. */
  function follow(id, path) {
    const list = element("ol")
    const room = {id, path, list, typing: new Map(), last: null, oldest: null, hasOlder: false, close, older, say}

    function place(key, line) {
      const after = [...list.children].findLast(each => each.dataset.key <= key)
      if (after?.dataset.key === key) return
      line.dataset.key = key
      const isAtEnd = isRead(room)
      if (after) after.after(line)
      else list.prepend(line)
      if (isAtEnd && line === list.lastElementChild) toEnd()
    }

    function add(key, value) {
      place(key, messageOf(key, Object(value), id === "general"))
      if (!room.oldest || key < room.oldest) room.oldest = key
      if (!room.last || key >= room.last.key) room.last = {...value, key}
    }

    function say(text) {
      place(`${list.lastElementChild?.dataset.key ?? ""}~`, element("li", {className: "event", textContent: text}))
    }

    async function read(after) {
      const found = []
      for await (const item of store.list(`${path}log/`, {order: "desc", limit: PAGE, after})) found.push(item)
      for (const {name, value} of found) add(name, value)
      room.hasOlder = found.length === PAGE
      show()
    }

    const onEvent = ({type, path: at, value, problem}) => {
      const [kind, name] = at?.slice(path.length).split("/") ?? []
      if (type === "refused") failed(problem)
      else if (type === "snapshot") {
        list.replaceChildren()
        room.last = room.oldest = null
        read().then(() => room === open && toEnd(), failed)
      } else if (kind === "log" && type === "put") {
        room.typing.delete(value.author)
        add(name, value)
        onMessage(room, value)
      } else if (kind === "typing" && name !== me.id) {
        if (type === "put") room.typing.set(name, value.name)
        else room.typing.delete(name)
      }
      show()
    }
    const {close: leave} = store.follow(path, {onEvent})

    function close() {
      leave()
      list.remove()
    }

    async function older() {
      const {scrollHeight, scrollTop} = $("#scroll")
      await read(room.oldest).catch(failed)
      $("#scroll").scrollTop = scrollTop + $("#scroll").scrollHeight - scrollHeight
    }

    return room
  }

  function messageOf(key, {author, name, text}, hasNames) {
    const isMine = author === me.id
    const who = element("button", {className: "name", textContent: name, onclick: () => meet(author, name)})
    const time = element("time", {textContent: shortTime(parseInt(key)), title: new Date(parseInt(key)).toLocaleString()})
    const said = element("p", {textContent: text, dir: "auto"})
    return element("li", {className: isMine ? "mine" : "theirs"}, ...(hasNames && !isMine ? [who] : []), said, time)
  }

  function onMessage(room, {author}) {
    if (room === general && author !== me.id && !isSeen(general)) unread++
    if (author === me.id && room === open) toEnd()
  }

  const isShown = () => !document.hidden && (isWide.matches || document.body.dataset.view === "room")
  const isSeen = room => room === open && isShown()
  const isRead = room => room === open && $("#scroll").scrollHeight - $("#scroll").scrollTop - $("#scroll").clientHeight < 60
  const toEnd = () => $("#scroll").scrollTo(0, $("#scroll").scrollHeight)

  /** Open a private room with somebody, which is in the list of rooms from then on. */
  function meet(id, name) {
    if (!rooms.has(id)) store.patch(inbox + id, {name}).catch(failed)
    names.set(id, name)
    location.hash = id
  }

  function enter() {
    const id = location.hash.slice(1)
    document.body.dataset.view = id ? "room" : "list"
    const wanted = id || open?.id || "general"
    if (wanted !== open?.id) {
      if (open && open !== general) open.close()
      open?.list.remove()
      const isKnown = rooms.has(wanted) || names.has(wanted)
      open = isKnown ? follow(wanted, `/chat/private/${[me.id, wanted].sort().join("/")}/`) : general
      $("#scroll").append(open.list)
      $("#write").text.value = ""
      toEnd()
    }
    if (id && isWide.matches) $("#write").text.focus()
    show()
  }

  // --- What is seen beside the messages

  const nameOf = id => (id === "general" ? "General" : `${Object(rooms.get(id)).name ?? names.get(id) ?? "?"}`)

  function show() {
    if (!open) return
    if (isSeen(open)) {
      if (open === general) {
        unread = 0
        if (general.last) localStorage.setItem(`seen ${me.id}`, general.last.key)
      } else if (Object(rooms.get(open.id)).unread) {
        rooms.set(open.id, {...rooms.get(open.id), unread: 0})
        store.patch(inbox + open.id, {unread: 0}).catch(failed)
      }
    }
    $("#title").textContent = nameOf(open.id)
    document.title = `${nameOf(open.id)} · Chat`
    $("#older").hidden = !open.hasOlder
    const typing = [...open.typing.values()]
    $("#typing").textContent = typing.length ? `${typing.join(", ")} ${typing.length > 1 ? "are" : "is"} typing…` : ""

    const last = Object(general.last)
    const first = {id: "general", text: last.key && `${last.name}: ${last.text}`, time: parseInt(last.key), unread}
    const entries = [...rooms].map(([id, value]) => ({...value, id})).sort((a, b) => (b.time || 0) - (a.time || 0))
    const others = [...online].filter(([id]) => id !== me.id && !rooms.has(id)).map(([id, {name}]) => buttonOf({id, text: "", name}))
    fill($("#rooms"), [first, ...entries].map(buttonOf))
    fill($("#people"), others.length ? [element("h2", {textContent: "Also here"}), ...others] : [])
  }

  function buttonOf({id, name, text, time, unread}) {
    const isHere = online.has(id)
    const dot = element("i", {className: id === "general" ? "all" : isHere ? "here" : "away", title: isHere ? "is here" : ""})
    const count = unread > 0 ? [element("b", {className: "unread", textContent: unread > 99 ? "99+" : unread, title: "unread"})] : []
    const onclick = () => (id === "general" ? (location.hash = id) : meet(id, name ?? nameOf(id)))
    const words = [element("strong", {textContent: name ?? nameOf(id)}), element("span", {textContent: text ?? ""})]
    const when = element("time", {textContent: time ? shortTime(time) : ""})
    const button = element("button", {onclick}, dot, ...words, when, ...count)
    button.dataset.id = id
    if (id === open.id) button.ariaCurrent = "true"
    return button
  }

  /** Replace what a list shows where that is something else: whoever points at a button keeps it, as does the focus. */
  function fill(list, children) {
    if (children.length === list.children.length && children.every((each, i) => each.isEqualNode(list.children[i]))) return
    const focused = list.contains(document.activeElement) && document.activeElement.dataset.id
    list.replaceChildren(...children)
    if (focused) list.querySelector(`[data-id="${CSS.escape(focused)}"]`)?.focus()
  }

  // --- Who is here

  const here = new Set() // as it was said in General

  function onPresence({type, path}) {
    const id = path.split("/").pop()
    if (type === "snapshot") {
      for (const [each] of online) here.add(each)
    } else if (type === "put" && !here.has(id) && here.add(id)) {
      names.set(id, online.get(id).name)
      if (id !== me.id) general.say(`${online.get(id).name} connected`)
    } else if (type !== "put") setTimeout(() => !online.has(id) && here.delete(id) && general.say(`${names.get(id)} left`), LEFT_MS)
    for (const [each, {name}] of online) names.set(each, name)
    show()
  }

  // --- Writing

  let typedAt = 0

  $("#write").oninput = () => {
    if (!$("#write").text.value.trim() || Date.now() - typedAt < 500 * TYPING_S) return
    typedAt = Date.now()
    store.put(`${open.path}typing/${me.id}`, {name: me.username}, {ttl: TYPING_S}).catch(() => {})
  }

  $("#write").onsubmit = async event => {
    event.preventDefault()
    const field = $("#write").text
    const text = field.value
    if (!text.trim()) return
    const {id, path} = open
    const message = {author: me.id, name: me.username, text}
    const entry = {text: text.slice(0, 100), time: {".sv": "timestamp"}}
    const theirs = {...entry, name: me.username, unread: {".sv": {increment: 1}}}
    field.value = $("#chat .problem").textContent = ""
    typedAt = 0
    try {
      if (id === "general") await store.post(`${path}log/`, message)
      else
        await store.batch([
          {method: "POST", path: `${path}log/`, body: message},
          {method: "PATCH", path: `/chat/inbox/${id}/${me.id}`, body: theirs},
          {method: "PATCH", path: inbox + id, body: {...entry, name: nameOf(id)}},
        ])
      store.delete(`${path}typing/${me.id}`).catch(() => {})
    } catch (problem) {
      field.value ||= text
      failed(problem)
    }
  }

  // --- Begin

  let open, unread = 0
  const names = new Map() // of people, by id
  const general = follow("general", "/chat/general/")
  const rooms = store.map(inbox, {onChange: show})
  const online = store.map("/chat/online/", {onChange: onPresence})
  store.hold(`/chat/online/${me.id}`, {name: me.username})

  $("#me").textContent = me.username
  $("#chat").hidden = false
  $("#older").onclick = () => open.older()
  $("#back").onclick = () => (location.hash = "")
  $("#logout").onclick = () => ask("/logout").then(() => becomes(""), failed)
  for (const change of ["visibilitychange", "resize"]) addEventListener(change, show)
  addEventListener("hashchange", enter)
  Promise.all([rooms.ready, online.ready]).then(async () => {
    const after = localStorage.getItem(`seen ${me.id}`)
    if (after) for await (const {value} of store.list("/chat/general/log/", {after, limit: 100})) unread += value.author !== me.id
    enter()
  }, failed)
}

function shortTime(ms) {
  const date = new Date(ms)
  const isToday = date.toDateString() === new Date().toDateString()
  return isToday
    ? date.toLocaleTimeString([], {hour: "2-digit", minute: "2-digit"})
    : date.toLocaleDateString([], {day: "numeric", month: "short"})
}
