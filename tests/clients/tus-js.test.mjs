// Every way in which tus-js-client sends a file, against the real `ferry up`: whole, in parts, with a length told
// late, resumed, terminated, empty, and in one request. Run by scripts/test.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createReadStream } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { after, before, test } from 'node:test'
import { fileURLToPath } from 'node:url'

import tus from 'tus-js-client'

import { Ferry } from './ferry.mjs'

const KIB = 1024
const MIB = 1024 * KIB
const TIMEOUT = { timeout: 90_000 }

let ferry
let folder

before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'ferry-tus-js-files-'))
  ferry = await Ferry.start()
}, TIMEOUT)

after(async () => {
  await rm(folder, { recursive: true, force: true })
  await ferry?.stop()
}, TIMEOUT)

/** Bytes that depend on seed and position, so that a shifted, doubled or swapped piece is noticed. */
function pattern(seed, length) {
  const bytes = Buffer.alloc(length)
  for (let block = 0; block * 32 < length; block += 1) {
    createHash('sha256').update(`${seed}:${block}`).digest().copy(bytes, block * 32)
  }
  return bytes
}

/** An upload, and a list of the requests that it makes. No retries: what fails fails the test. */
function newUpload(source, options = {}) {
  const requests = []
  let settle
  const finished = new Promise((resolve, reject) => {
    settle = { resolve, reject }
  })
  const upload = new tus.Upload(source, {
    endpoint: ferry.files,
    metadata: { filename: 'from tus-js-client.bin' },
    retryDelays: null,
    onBeforeRequest: (request) => {
      requests.push({
        method: request.getMethod(),
        offset: request.getHeader('Upload-Offset'),
        length: request.getHeader('Upload-Length'),
        deferred: request.getHeader('Upload-Defer-Length'),
      })
    },
    onSuccess: () => settle.resolve(upload.url),
    onError: settle.reject,
    ...options,
  })
  return { upload, requests, finished }
}

/** Sends it whole; the upload's URL, and the requests that it took. */
async function send(source, options) {
  const { upload, requests, finished } = newUpload(source, options)
  upload.start()
  return { url: await finished, requests }
}

const methods = (requests) => requests.map(({ method }) => method)

test('a buffer is sent in one piece', TIMEOUT, async () => {
  const bytes = pattern('buffer', 3 * MIB + 7)
  const { url, requests } = await send(bytes)
  assert.deepEqual(methods(requests), ['POST', 'PATCH'])
  await ferry.assertDelivered(url, bytes)
})

test('a file is sent as a stream', TIMEOUT, async () => {
  const bytes = pattern('file', 3 * MIB + 1)
  const path = join(folder, 'file.bin')
  await writeFile(path, bytes)
  const { url, requests } = await send(createReadStream(path))
  assert.deepEqual(methods(requests), ['POST', 'PATCH'])
  await ferry.assertDelivered(url, bytes)
})

test('a buffer is sent in chunks', TIMEOUT, async () => {
  const bytes = pattern('chunks', 2 * MIB + 100)
  const { url, requests } = await send(bytes, { chunkSize: 512 * KIB })
  assert.deepEqual(
    requests.filter(({ method }) => method === 'PATCH').map(({ offset }) => Number(offset)),
    [0, 512 * KIB, 1024 * KIB, 1536 * KIB, 2048 * KIB],
  )
  await ferry.assertDelivered(url, bytes)
})

// Not a multiple of the chunk size: there tus-js-client 4.3.1 waits for ever for a chunk after the last one.
test('a stream of unknown length tells its length with the last chunk', TIMEOUT, async () => {
  const length = MIB + 1
  const bytes = pattern('deferred', length)
  const pieces = Array.from({ length: Math.ceil(length / 1000) }, (_, i) => bytes.subarray(i * 1000, (i + 1) * 1000))
  const { url, requests } = await send(Readable.from(pieces, { objectMode: false }), {
    uploadLengthDeferred: true,
    chunkSize: 256 * KIB,
  })
  const [creation, ...patches] = requests
  assert.deepEqual([creation.method, creation.deferred, creation.length], ['POST', '1', undefined])
  assert.deepEqual(
    patches.map((patch) => patch.length ?? 'untold'),
    ['untold', 'untold', 'untold', 'untold', String(length)],
  )
  await ferry.assertDelivered(url, bytes)
})

test('an aborted upload is resumed by the same process', TIMEOUT, async () => {
  const bytes = pattern('aborted', 4 * MIB)
  const options = { urlStorage: new tus.FileUrlStorage(join(folder, 'aborted.json')), chunkSize: MIB }
  const first = newUpload(bytes, options)
  await new Promise((resolve, reject) => {
    first.upload.options.onChunkComplete = () => first.upload.abort().then(resolve, reject)
    first.upload.options.onError = reject
    first.upload.start()
  })

  const second = newUpload(bytes, options)
  const url = await resume(second)
  assert.equal(url, first.upload.url)
  assert.deepEqual(methods(second.requests), ['HEAD', 'PATCH', 'PATCH', 'PATCH'])
  assert.equal(Number(second.requests[1].offset), MIB)
  await ferry.assertDelivered(url, bytes)
})

test('an upload cut within a request is resumed where the server is', TIMEOUT, async () => {
  const bytes = pattern('cut', 64 * MIB)
  const path = join(folder, 'cut.bin') // of a buffer's progress nothing is told before its end
  await writeFile(path, bytes)
  const options = { urlStorage: new tus.FileUrlStorage(join(folder, 'cut.json')) }
  const first = newUpload(createReadStream(path), options)
  await new Promise((resolve, reject) => {
    first.upload.options.onProgress = (sent) => {
      if (sent >= MIB) first.upload.abort().then(resolve, reject)
    }
    first.upload.options.onError = reject
    first.upload.start()
  })

  const second = newUpload(createReadStream(path), options)
  const url = await resume(second)
  assert.equal(url, first.upload.url)
  // What was under way when the connection was cut still arrives; the sender goes on where it was told all the same.
  assert.deepEqual(methods(second.requests), ['HEAD', 'PATCH'])
  assert.ok(Number(second.requests[1].offset) < bytes.length)
  await ferry.assertDelivered(url, bytes)
})

test('an upload of a killed process is resumed by another', TIMEOUT, async () => {
  const bytes = pattern('killed', 4 * MIB)
  const path = join(folder, 'killed.bin')
  const storage = join(folder, 'killed.json')
  await writeFile(path, bytes)
  const killed = spawn(process.execPath, [fileURLToPath(new URL('killed-sender.mjs', import.meta.url))], {
    env: { ...process.env, ENDPOINT: ferry.files, FILE: path, URL_STORAGE: storage, CHUNK_BYTES: String(MIB) },
    stdio: ['ignore', 'inherit', 'inherit'],
  })
  const [code, signal] = await once(killed, 'exit')
  assert.deepEqual([code, signal], [null, 'SIGKILL'])

  const second = newUpload(createReadStream(path), { urlStorage: new tus.FileUrlStorage(storage) })
  const url = await resume(second)
  assert.deepEqual(methods(second.requests), ['HEAD', 'PATCH'])
  assert.ok(Number(second.requests[1].offset) >= MIB, 'what was acknowledged to the killed process is not sent again')
  await ferry.assertDelivered(url, bytes)
})

/** Goes on with the one earlier upload of the same file. */
async function resume({ upload, finished }) {
  const previous = await upload.findPreviousUploads()
  assert.equal(previous.length, 1, 'one earlier upload is known')
  upload.resumeFromPreviousUpload(previous[0])
  upload.start()
  return finished
}

test('a terminated upload is gone and is not delivered', TIMEOUT, async () => {
  const { upload } = newUpload(pattern('terminated', 4 * MIB), { chunkSize: MIB })
  await new Promise((resolve, reject) => {
    upload.options.onChunkComplete = () => upload.abort(true).then(resolve, reject)
    upload.options.onError = reject
    upload.start()
  })
  await assertGone(upload.url)

  // A later upload passes through the same queue: when it is there, the terminated one would be, too.
  const bytes = pattern('after the terminated', 1000)
  const later = await send(bytes)
  await ferry.assertDelivered(later.url, bytes)
  await assertNeverDelivered(upload.url)
})

test('an upload is terminated before its first byte', TIMEOUT, async () => {
  const { upload } = newUpload(pattern('terminated early', MIB))
  await new Promise((resolve, reject) => {
    upload.options.onUploadUrlAvailable = () => upload.abort(true).then(resolve, reject)
    upload.options.onError = reject
    upload.start()
  })
  await assertGone(upload.url)
  await assertNeverDelivered(upload.url)
})

async function assertGone(url) {
  const head = await fetch(url, { method: 'HEAD', headers: { 'Tus-Resumable': '1.0.0' } })
  assert.ok([404, 410].includes(head.status), `HEAD of a terminated upload: ${head.status}`)
  const info = await ferry.info(url)
  assert.equal(info.status, 404, '/info of a terminated upload')
}

/** The built-in names carry the upload's id. */
async function assertNeverDelivered(url) {
  const id = new URL(url).pathname.split('/').at(-1)
  const files = [...(await ferry.delivered('dex')), ...(await ferry.delivered('edav'))]
  assert.deepEqual(
    files.filter((path) => path.includes(id)),
    [],
  )
}

test('an empty file is complete when it is created', TIMEOUT, async () => {
  const { url, requests } = await send(Buffer.alloc(0))
  assert.deepEqual(methods(requests), ['POST'])
  await ferry.assertDelivered(url, Buffer.alloc(0))
})

test('data that comes with the creation needs no PATCH', TIMEOUT, async () => {
  const bytes = pattern('creation', 2 * MIB + 3)
  const { url, requests } = await send(bytes, { uploadDataDuringCreation: true })
  assert.deepEqual(methods(requests), ['POST'])
  await ferry.assertDelivered(url, bytes)
})

test('the first chunk comes with the creation, the others as PATCHes', TIMEOUT, async () => {
  const bytes = pattern('creation in chunks', 2 * MIB + 3)
  const { url, requests } = await send(bytes, { uploadDataDuringCreation: true, chunkSize: MIB })
  assert.deepEqual(methods(requests), ['POST', 'PATCH', 'PATCH'])
  assert.equal(Number(requests[1].offset), MIB)
  await ferry.assertDelivered(url, bytes)
})

test('eight uploads at once do not mix', TIMEOUT, async () => {
  const files = Array.from({ length: 8 }, (_, i) => pattern(`eight ${i}`, MIB + i))
  const uploads = await Promise.all(files.map((bytes) => send(bytes, { chunkSize: 300 * KIB })))
  assert.equal(new Set(uploads.map(({ url }) => url)).size, files.length)
  await Promise.all(uploads.map(({ url }, i) => ferry.assertDelivered(url, files[i])))
})
