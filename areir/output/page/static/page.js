// The search page: it sends questions to inference.py and shows the answers.
//
// A question is {picture: Blob, name} or {image: number, token, name}, an image of the
// folder; token names the reading of the folder that gave the image its number.
'use strict'

const find = id => document.getElementById(id)
const answer = find('answer')
const asked = [] // the questions of this page; history.state is a place in it
let question = null
let search = new AbortController() // of the newest search
let drawing = new AbortController() // of the newest heat maps

// Requests

async function post(path, fields, signal) {
  const body = new FormData()
  for (const [name, value] of Object.entries(fields)) body.append(name, value)
  let reply
  try {
    // the address of the page may hold the password, which fetch refuses
    reply = await fetch(location.origin + path, {method: 'POST', body, signal})
  } catch (error) {
    if (error.name === 'AbortError') throw error
    throw new Error('The server does not answer. Is inference.py still running?')
  }
  if (!reply.ok) throw new Error(await reply.text())
  return reply
}

function questionFields({picture, image, token}) {
  return picture ? {picture} : {image, token}
}

// Messages

function showError(error) {
  if (error.name !== 'AbortError') find('error').textContent = error.message
}

// An answer to an earlier question must not stand below an error about a new one.
function refuse(text) {
  search.abort()
  drawing.abort()
  question = null
  find('preview').hidden = find('asked').hidden = true
  answer.replaceChildren()
  answer.removeAttribute('aria-busy')
  say('')
  showError(new Error(text))
}

function say(text) {
  find('status').textContent = text
}

// Search

async function ask(next, {isNew = true, moveFocus = false} = {}) {
  search.abort()
  drawing.abort()
  search = new AbortController()
  const {signal} = search
  question = next
  find('large').close() // a picture may be pasted while it is open
  showQuestion()
  find('error').textContent = ''
  answer.setAttribute('aria-busy', 'true')
  say('Searching')
  try {
    const fields = {...questionFields(next), number: wantedNumber()}
    const reply = await post('/search', fields, signal)
    answer.innerHTML = await reply.text() // the server has escaped names
    if (isNew) remember(next)
    say([...answer.querySelectorAll('h2, .verdict')].map(node => node.textContent).join('. '))
    if (moveFocus) answer.focus({preventScroll: true})
    if (isNew) scrollToAnswer()
  } catch (error) {
    if (error.name === 'AbortError') return
    answer.replaceChildren()
    say('')
    showError(error)
  }
  if (signal.aborted) return
  answer.removeAttribute('aria-busy')
  drawHeatMaps()
}

// Correct what is typed to a number that the server takes, and return it.
function wantedNumber() {
  const field = find('number')
  const typed = Math.round(field.value || field.defaultValue)
  field.value = Math.min(Math.max(typed, field.min), field.max)
  return field.value
}

// On a narrow screen the answer is below the question.
function scrollToAnswer() {
  if (answer.offsetTop > innerHeight / 2) answer.scrollIntoView()
  else scrollTo({top: 0})
}

function remember(next) {
  history.pushState(asked.length, '')
  asked.push(next)
}

async function askFirst(files) {
  const [file] = files
  if (!file) return refuse('That is not a file. Drop or paste a picture.')
  if (file.size > document.body.dataset.largest) return refuse(document.body.dataset.tooLarge)
  const others = files.length > 1 ? `, the first of ${files.length} files` : ''
  try {
    // a copy, because the file may change before the next search with it
    const picture = new Blob([await file.arrayBuffer()], {type: file.type})
    await ask({picture, name: file.name + others})
  } catch (error) {
    refuse(`The file cannot be read: ${error.message.replace(/\.$/, '')}.`)
  }
}

function showQuestion() {
  const preview = find('preview')
  URL.revokeObjectURL(preview.src)
  const {picture, image, token, name} = question
  preview.src = picture ? URL.createObjectURL(picture) : `/images/${token}/${image}/small`
  preview.alt = `Your picture: ${name}`
  preview.hidden = false
  find('asked').textContent = name
  find('asked').hidden = false
}

// Heat maps

async function drawHeatMaps() {
  drawing.abort()
  drawing = new AbortController()
  const {signal} = drawing
  const isOn = find('heat').checked
  answer.classList.toggle('heat', isOn)
  const buttons = [...answer.querySelectorAll('.ask')]
  for (const button of buttons) showSmall(button)
  if (!isOn || !buttons.length) return
  for (const button of buttons) button.classList.add('drawing')
  try {
    for (const button of buttons) await drawHeatMap(button, signal)
    say('The heat maps are drawn')
  } catch (error) {
    for (const button of buttons) button.classList.remove('drawing')
    showError(error)
  }
}

async function drawHeatMap(button, signal) {
  const {image, token} = button.dataset
  const fields = {...questionFields(question), shown: image, token}
  const reply = await post('/heat_map', fields, signal)
  const picture = button.querySelector('img')
  picture.src = URL.createObjectURL(await reply.blob())
  picture.alt = `Your picture and ${button.dataset.name} under their heat maps`
  button.classList.remove('drawing')
}

function showSmall(button) {
  const picture = button.querySelector('img')
  if (picture.src.startsWith('blob:')) URL.revokeObjectURL(picture.src)
  if (picture.getAttribute('src') !== picture.dataset.small) picture.src = picture.dataset.small
  picture.alt = button.dataset.name
  button.classList.remove('drawing')
}

// The folder

async function readAgain() {
  const button = find('again')
  button.disabled = true
  find('changes').textContent = 'Reading the folder'
  find('error').textContent = ''
  try {
    const fields = question && !question.picture ? questionFields(question) : {}
    const reply = await post('/read_again', fields)
    const {message, total, token, image} = await reply.json()
    find('changes').textContent = message
    find('total').textContent = total
    searchAgain(image, token)
  } catch (error) {
    find('changes').textContent = ''
    showError(error)
  } finally {
    button.disabled = false
  }
}

// Images of the folder may have other numbers now.
function searchAgain(image, token) {
  if (!question) return
  if (question.picture) {
    ask(question, {isNew: false})
  } else if (image !== null) {
    ask({...question, image, token}, {isNew: false})
  } else {
    answer.replaceChildren()
    showError(new Error(`${question.name} is gone, or the folder was read again before.`))
  }
}

// A larger picture

function enlarge(link) {
  const dialog = find('large')
  const button = link.closest('.tile').querySelector('.ask')
  const picture = dialog.querySelector('img')
  picture.src = link.href
  picture.alt = button.dataset.name
  find('large-text').textContent = button.dataset.name
  dialog.showModal()
}

// Events

find('file').addEventListener('change', event => {
  if (event.target.files.length) askFirst(event.target.files)
  event.target.value = '' // so that the same file can be chosen again
})

addEventListener('paste', event => {
  const {files} = event.clipboardData
  const isTyping = document.activeElement === find('number')
  if (files.length || !isTyping) askFirst(files)
})

addEventListener('dragover', event => {
  event.preventDefault()
  document.body.classList.add('dragging')
})

addEventListener('dragleave', event => {
  if (!event.relatedTarget) document.body.classList.remove('dragging')
})

addEventListener('drop', event => {
  event.preventDefault()
  document.body.classList.remove('dragging')
  askFirst(event.dataTransfer.files)
})

answer.addEventListener('click', event => {
  const button = event.target.closest('.ask')
  const link = event.target.closest('.larger')
  const isPlain = !event.ctrlKey && !event.metaKey && !event.shiftKey
  if (button) {
    const {image, token, name} = button.dataset
    ask({image, token, name}, {moveFocus: true})
  } else if (link && isPlain) {
    event.preventDefault()
    enlarge(link)
  }
})

find('large').querySelector('button').addEventListener('click', () => find('large').close())
find('large').addEventListener('click', event => {
  if (event.target === find('large')) find('large').close() // beside the picture
})

find('number').addEventListener('change', () => {
  wantedNumber()
  if (question) ask(question, {isNew: false})
})

find('heat').addEventListener('change', drawHeatMaps)
find('again').addEventListener('click', readAgain)

find('preview').addEventListener('error', () => {
  find('preview').hidden = true // a format that the browser does not show
})

addEventListener('popstate', event => {
  const earlier = asked[event.state]
  if (earlier) ask(earlier, {isNew: false})
})
