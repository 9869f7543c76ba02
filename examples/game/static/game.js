// Shows the lobby, or a game, as it is in the store. Text goes into the page as text only.
import {connect} from "/store/_/kvstore.js"

const SHOWN = 100 // games in the lobby
const $ = id => document.getElementById(id)
const store = connect(undefined, {onBehind})
const last = location.pathname.split("/").pop()
const name = last === "new" ? "" : last
let me = null // the public id of who looks at this, once they have joined a game

function onBehind(isBehind) {
  setLive(!isBehind)
  if (!isBehind) whoAmI()
}

function setLive(isLive) {
  $("connection").textContent = isLive ? "live" : "connecting…"
  document.body.classList.toggle("behind", !isLive)
}

function element(tag, text, className = "") {
  return Object.assign(document.createElement(tag), {textContent: text, className})
}

const marks = board => [...board].filter(each => each !== ".").length
const isOver = ({board, line}) => Boolean(line) || marks(board) === 9
const turn = ({board}) => marks(board) % 2
const winner = ({board, line}) => "XO".indexOf(board[line[0]])

// --- Lobby

function lobby() {
  const rows = new Map()
  const games = store.map("/games/", {onChange: showGames})

  function rowOf(name) {
    if (!rows.has(name)) {
      const row = element("li", "")
      const link = Object.assign(element("a", name), {href: `/${name}`})
      row.append(link, element("span", "", "state"), element("span", "", "count"))
      rows.set(name, row)
    }
    return rows.get(name)
  }

  function stateOf(game) {
    if (game.line) return `${game.players[winner(game)].name} won`
    if (isOver(game)) return "draw"
    return game.players.length < 2 ? "waiting for players" : "playing"
  }

  function showGames() {
    setLive(true)
    const newest = [...games].sort(([, a], [, b]) => b.made - a.made).slice(0, SHOWN)
    const wanted = new Set(newest.map(([name]) => name))
    for (const [name, row] of rows) if (!wanted.has(name)) rows.delete(name), row.remove()
    newest.forEach(([name, game], index) => {
      const row = rowOf(name)
      const [, state, count] = row.children
      state.textContent = stateOf(game)
      count.textContent = `${game.players.length} of 8`
      // A row that stays where it is keeps the focus.
      if ($("games").children[index] !== row) $("games").insertBefore(row, $("games").children[index])
    })
    $("none").hidden = newest.length > 0
  }
}

// --- A game

let game // undefined until the store has said, null if there is none

function play() {
  const cells = Array.from({length: 9}, (_, cell) => {
    const button = Object.assign(element("button", ""), {type: "button", onclick: () => ask(`/${name}/${cell}`)})
    button.onkeydown = event => {
      const step = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -3, ArrowDown: 3}[event.key]
      if (!step) return
      event.preventDefault()
      cells[(cell + step + 9) % 9].focus()
    }
    return button
  })
  $("board").append(...cells)
  $("name").textContent = name
  document.title = `${name} · Tic-tac-toe`
  $("join").onsubmit = async event => {
    event.preventDefault()
    if (await ask(`/join/${name}?as=${encodeURIComponent($("as").value)}`)) whoAmI()
  }
  store.follow(`/games/${name}`, {onEvent({type, value}) {
    if (type === "reset") return
    setLive(true)
    game = value
    show()
  }})

  show = () => {
    if (game === undefined) return
    const players = game?.players ?? []
    const mine = players.findIndex(({id}) => id === me)
    const isPlaying = players.length > 1 && !isOver(game)
    $("board").hidden = !game
    $("state").textContent = sentence(players, mine)
    cells.forEach((button, cell) => {
      const mark = game && game.board[cell] !== "." ? game.board[cell] : ""
      button.textContent = mark
      button.className = `${mark} ${game?.line?.includes(cell) ? "won" : ""}`
      button.ariaLabel = `row ${Math.floor(cell / 3) + 1}, column ${(cell % 3) + 1}: ${mark || "empty"}`
      button.ariaDisabled = String(Boolean(mark) || !isPlaying || mine !== turn(game))
    })
    $("players").replaceChildren(...players.map(({name}, index) => {
      const row = element("li", "")
      row.append(element("b", "XO"[index] ?? "", "XO"[index]), element("span", name))
      if (index === mine) row.append(element("small", "you"))
      if (index > 1) row.append(element("small", "watches"))
      row.classList.toggle("turn", isPlaying && index === turn(game))
      return row
    }))
    $("again").hidden = Boolean(game) && !isOver(game)
    $("side").hidden = !game
    $("join").hidden = !game || mine >= 0 || players.length === 8
  }
}

let show = () => {}

function sentence(players, mine) {
  if (!game) return "Game not found. A game that nobody touches for a day is deleted."
  if (game.line) return winner(game) === mine ? "You won." : `${players[winner(game)].name} won.`
  if (isOver(game)) return "A draw."
  if (players.length < 2) return mine < 0 ? "Join to play." : "Waiting for a second player. Send them the address of this page."
  return turn(game) === mine ? "Your turn." : `${players[turn(game)].name}'s turn.`
}

async function whoAmI() {
  const answer = await fetch("/me").catch(() => null)
  if (answer?.ok) me = (await answer.json()).player
  show()
}

// Send a POST; return whether it was done, and show why not.
async function ask(target) {
  const answer = await fetch(target, {method: "POST", headers: {accept: "text/plain"}}).catch(() => null)
  $("refused").textContent = !answer ? "No connection. Try again." : answer.ok ? "" : `${await answer.text()}.`
  return answer?.ok
}

$(name ? "game" : "lobby").hidden = false
if (name) {
  play()
  whoAmI()
} else lobby()
