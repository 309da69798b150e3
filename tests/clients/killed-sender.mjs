// A sender that is killed after its first chunk was acknowledged. Started by tus-js.test.mjs.

import { createReadStream } from 'node:fs'

import tus from 'tus-js-client'

const { ENDPOINT, FILE, URL_STORAGE, CHUNK_BYTES } = process.env

new tus.Upload(createReadStream(FILE), {
  endpoint: ENDPOINT,
  metadata: { filename: 'from a killed process.bin' },
  urlStorage: new tus.FileUrlStorage(URL_STORAGE),
  chunkSize: Number(CHUNK_BYTES),
  retryDelays: null,
  onChunkComplete: () => process.kill(process.pid, 'SIGKILL'),
  onError: (error) => {
    throw error
  },
}).start()
