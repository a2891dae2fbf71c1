// One ONNX file in onnxruntime-web (WASM), answering as runtime_worker.py does:
// node runtime_worker.mjs PACKAGE MODEL OUTPUTS SHAPE THREADS, where PACKAGE is the folder of onnxruntime-web.

import fs from 'node:fs';
import path from 'node:path';
import readline from 'node:readline';
import { pathToFileURL } from 'node:url';

const [, , folder, model, outputs, , threads] = process.argv;
const say = (content) => fs.writeSync(1, JSON.stringify(content) + '\n');
const firstLine = (error) => String(error?.message ?? error).split('\n').map((line) => line.trim()).find(Boolean);
console.log = console.error; // stdout is for answers

const ARRAYS = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array, bool: Uint8Array };

function bytesOf(file) {
  const content = fs.readFileSync(file);
  return content.buffer.slice(content.byteOffset, content.byteOffset + content.byteLength);
}

try {
  const manifest = JSON.parse(fs.readFileSync(path.join(folder, 'package.json'), 'utf8'));
  const entry = path.join(folder, 'dist', 'ort.node.min.mjs');
  const ort = await import(pathToFileURL(entry).href);
  ort.env.wasm.numThreads = Number(threads);
  const session = await ort.InferenceSession.create(new Uint8Array(bytesOf(model)), { executionProviders: ['wasm'] });
  say({ version: manifest.version });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const request = JSON.parse(line);
    const image = new ort.Tensor(request.dtype, new ARRAYS[request.dtype](bytesOf(request.image)), request.shape);
    const started = performance.now();
    const found = await session.run({ image }, JSON.parse(outputs));
    const answer = { ms: performance.now() - started, outputs: {} };
    if (request.outputs) {
      for (const [name, tensor] of Object.entries(found)) {
        const values = tensor.data;
        const bytes = Buffer.from(values.buffer, values.byteOffset, values.byteLength);
        fs.writeFileSync(path.join(request.outputs, `${name}.bin`), bytes);
        answer.outputs[name] = { shape: tensor.dims, dtype: tensor.type };
      }
    }
    say(answer);
  }
  process.exit(0);
} catch (error) {
  say({ error: firstLine(error) });
  process.exit(0);
}
