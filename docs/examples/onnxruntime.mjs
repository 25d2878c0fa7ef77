// Classifies images of any size with ONNX Runtime in Node.js.
//
//     npm install onnxruntime-node        # or onnxruntime-web: WebAssembly, as in a browser
//     node onnxruntime.mjs model.image.onnx image.ppm ...
//
// The graph resizes, crops and scales. The answers are what `kdedge verify` asks for.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";

// Looks for the package where the program is started, not where this file is
const require = createRequire(join(process.cwd(), "here.js"));
const isThere = (name) => { try { return require.resolve(name); } catch { return ""; } };
const name = ["onnxruntime-node", "onnxruntime-web"].find(isThere);
if (!name) {
  console.error("Install ONNX Runtime first: npm install onnxruntime-node");
  process.exit(1);
}
const ort = require(name);

// Any decoder will do that gives bytes in RGB order, row by row; PPM files need none.
function readPpm(path) {
  const bytes = readFileSync(path);
  const [head, width, height] =
    bytes.subarray(0, 64).toString("latin1").match(/^P6\s+(\d+)\s+(\d+)\s+255\s/) ?? [];
  if (!head) throw new Error(`${path} is no PPM file with 8 bits`);
  const pixels = bytes.subarray(head.length, head.length + 3 * width * height);
  return new ort.Tensor("uint8", new Uint8Array(pixels), [Number(height), Number(width), 3]);
}

function mean(plane) {
  return plane.reduce((sum, value) => sum + value, 0) / plane.length;
}

const [model, ...images] = process.argv.slice(2);
const artifact = JSON.parse(readFileSync(join(dirname(model), "artifact.json"), "utf8"));
const session = await ort.InferenceSession.create(readFileSync(model));
for (const path of images) {
  const { logits, pixels } = await session.run({ image: readPpm(path) });
  const best = logits.data.indexOf(Math.max(...logits.data));
  const sum = logits.data.reduce((total, one) => total + Math.exp(one - logits.data[best]), 0);
  const n = pixels.data.length / 3; // of a color's plane
  console.log(JSON.stringify({
    label: artifact.class_names[best],
    score: artifact.output.head === "scores" ? 100 / sum : null,
    rgb_mean: [0, 1, 2].map((color) => mean(pixels.data.subarray(color * n, (color + 1) * n))),
  }));
}
