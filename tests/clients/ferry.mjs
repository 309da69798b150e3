// One `ferry up` for a test file: started on a free port in a folder of its own, asked, and stopped.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, openSync } from 'node:fs'
import { mkdtemp, readdir, readFile, realpath, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as pause } from 'node:timers/promises'

// Generous, so that a busy machine does not fail a test; nothing waits this long when all is well.
const DEADLINE_MS = 30_000
const POLL_MS = 50
const TARGETS = ['dex', 'edav']

export class Ferry {
  /** Starts `ferry up`; FERRY_BIN names the binary. Resolves when it accepts uploads. */
  static async start() {
    const binary = process.env.FERRY_BIN
    assert.ok(binary, 'FERRY_BIN must name the ferry binary; scripts/test sets it')

    const folder = await realpath(await mkdtemp(join(tmpdir(), 'ferry-tus-js-')))
    const log = openSync(join(folder, 'log'), 'w')
    const child = spawn(binary, ['up', '--data', join(folder, 'data'), '--listen', '127.0.0.1:0'], {
      // Nothing of the caller's environment, which might hold settings of Ferry.
      env: { PATH: process.env.PATH, RUST_LOG: 'info', AWS_EC2_METADATA_DISABLED: 'true' },
      stdio: ['ignore', 'pipe', log],
    })
    closeSync(log)
    // The last net, for a test process that ends without its hooks.
    process.once('exit', () => child.kill('SIGKILL'))

    const ferry = new Ferry(child, folder)
    try {
      ferry.files = await ferry.#ready()
    } catch (error) {
      child.kill('SIGKILL')
      const text = await readFile(join(folder, 'log'), 'utf8')
      await rm(folder, { recursive: true })
      throw new Error(`${error.message}\n${text}`)
    }
    return ferry
  }

  constructor(child, folder) {
    this.child = child
    this.folder = folder
    this.data = join(folder, 'data')
    this.exit = once(child, 'exit')
    // `#ready` and `stop` look at it when they need it; a failed spawn must not be an unhandled rejection until then.
    this.exit.catch(() => {})
  }

  /** The URL of the line `ready: URL`. */
  async #ready() {
    const lines = createInterface({ input: this.child.stdout })
    const ready = new Promise((resolve) => {
      lines.on('line', (line) => {
        if (line.startsWith('ready: ')) resolve(line.slice('ready: '.length).trim())
      })
    })
    const ended = this.exit.then(([code, signal]) => {
      throw new Error(`ferry up ended before it was ready: ${code ?? signal}`)
    })
    const late = pause(DEADLINE_MS, undefined, { ref: false }).then(() => {
      throw new Error(`ferry up was not ready after ${DEADLINE_MS} ms`)
    })
    const url = await Promise.race([ready, ended, late])
    assert.match(url, /^http:\/\/127\.0\.0\.1:[1-9]\d*\/files\/$/)
    return url
  }

  /** Ends it as an operator would, and sees that it ends well. */
  async stop() {
    this.child.kill('SIGTERM')
    const late = pause(DEADLINE_MS, undefined, { ref: false }).then(() => {
      this.child.kill('SIGKILL')
      throw new Error(`ferry up was still running ${DEADLINE_MS} ms after SIGTERM`)
    })
    const [code, signal] = await Promise.race([this.exit, late])
    const log = await readFile(join(this.folder, 'log'), 'utf8')
    await rm(this.folder, { recursive: true })
    assert.equal(code ?? signal, 0, `exit status of ferry up after SIGTERM; its log:\n${log}`)
  }

  /** `/info` of an upload. */
  info(uploadUrl) {
    const id = new URL(uploadUrl).pathname.split('/').at(-1)
    return fetch(new URL(`/info/${id}`, this.files))
  }

  /** Waits until every target has the upload, and compares every byte of every copy. */
  async assertDelivered(uploadUrl, expected) {
    const deadline = Date.now() + DEADLINE_MS
    for (;;) {
      const response = await this.info(uploadUrl)
      assert.equal(response.status, 200, `GET /info of ${uploadUrl}`)
      const info = await response.json()
      const deliveries = info.deliveries ?? []
      const failed = deliveries.find(({ status }) => status === 'FAILURE')
      assert.equal(failed, undefined, `a delivery failed: ${JSON.stringify(failed)}`)
      if (deliveries.length > 0 && deliveries.every(({ status }) => status === 'SUCCESS')) {
        assert.equal(info.upload_status.status, 'Complete')
        assert.equal(info.file_info.size_bytes, expected.length)
        assert.deepEqual(deliveries.map(({ name }) => name).sort(), TARGETS)
        for (const { name, location } of deliveries) {
          assert.ok(location.startsWith(join(this.data, name) + '/'), `${location} is in the folder of ${name}`)
          const copy = await readFile(location)
          assert.ok(copy.equals(expected), `${location} is the file that was sent, byte for byte`)
        }
        return
      }
      assert.ok(Date.now() < deadline, `not delivered after ${DEADLINE_MS} ms: ${JSON.stringify(info)}`)
      await pause(POLL_MS)
    }
  }

  /** The files that readers of a target see. What Ferry keeps for itself is below `.ferry`. */
  async delivered(target) {
    const entries = await readdir(join(this.data, target), { recursive: true, withFileTypes: true })
    return entries
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath ?? entry.path, entry.name))
      .filter((path) => !path.startsWith(join(this.data, target, '.ferry') + '/'))
  }
}
