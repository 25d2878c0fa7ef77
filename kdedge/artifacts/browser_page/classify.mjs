// Classifies pixels of any size with ONNX Runtime in a browser; the graph resizes, crops and scales.

const PACKAGE = "./node_modules/onnxruntime-web/dist/";

// The smallest module with an instruction of WebAssembly SIMD, i8x16.splat
const SIMD = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11,
]);

async function fetched(name) {
  const reply = await fetch(name);
  if (!reply.ok) throw new Error(`${name} cannot be loaded: the server answers ${reply.status}.`);
  return reply;
}

// The package with WebGPU is larger, so it is loaded only where there is a GPU.
async function openSession(model, provider) {
  const file = provider === "webgpu" ? "ort.webgpu.min.mjs" : "ort.wasm.min.mjs";
  let ort;
  try {
    ort = await import(`${PACKAGE}${file}`);
  } catch {
    throw new Error(
      `onnxruntime-web is missing or does not fit: ${PACKAGE}${file} cannot be loaded.\n` +
        "Run `npm install` in the folder of this page, and load it again.",
    );
  }
  ort.env.wasm.wasmPaths = new URL(PACKAGE, document.baseURI).href;
  ort.env.logLevel = "error";
  // WebAssembly does what WebGPU cannot
  const executionProviders = provider === "webgpu" ? ["webgpu", "wasm"] : ["wasm"];
  return { ort, session: await ort.InferenceSession.create(model, { executionProviders }) };
}

function toTensor(ort, { data, width, height }) {
  const rgb = new Uint8Array(3 * width * height);
  for (let from = 0, to = 0; to < rgb.length; from += 4, to += 3) {
    rgb[to] = data[from];
    rgb[to + 1] = data[from + 1];
    rgb[to + 2] = data[from + 2];
  }
  return new ort.Tensor("uint8", rgb, [height, width, 3]);
}

// The matrices of a file in the format of safetensors, all float64, as lists of rows.
function readMatrices(buffer) {
  const start = 8 + Number(new DataView(buffer).getBigUint64(0, true));
  const entries = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, start - 8)));
  return Object.fromEntries(Object.entries(entries).map(([name, { shape, data_offsets }]) => {
    const values = new Float64Array(buffer.slice(start + data_offsets[0], start + data_offsets[1]));
    return [name, Array.from({ length: shape[0] }, (_, r) => values.subarray(r * shape[1], (r + 1) * shape[1]))];
  }));
}

// Minus the squared distance of logits to the nearest mean of the known images.
function knownScore({ whitening, means }, logits) {
  const white = whitening.map((row) => row.reduce((sum, weight, c) => sum + weight * logits[c], 0));
  return -Math.min(...means.map((mean) => mean.reduce((sum, value, r) => sum + (white[r] - value) ** 2, 0)));
}

// Gives { name, about, classify(imageData) }; `say` is told what happens, if given.
export async function loadClassifier(say = () => {}) {
  if (typeof WebAssembly !== "object" || !WebAssembly.validate(SIMD)) {
    throw new Error(
      "This browser has no WebAssembly SIMD, which ONNX Runtime needs.\n" +
        "Use Chrome or Edge 91, Firefox 89, Safari 16.4, or a newer one.",
    );
  }
  say("Loading the model");
  const settings = await (await fetched("settings.json")).json();
  const none = settings.none_of_these;
  const gaussians = none && readMatrices(await (await fetched(none.file)).arrayBuffer());
  const [preparation, model] = await Promise.all(
    [settings.preprocess, settings.model].map(async (name) =>
      new Uint8Array(await (await fetched(name)).arrayBuffer())),
  );
  const gpu = await navigator.gpu?.requestAdapter().catch(() => null);

  // The build with WebGPU has no casts to 64 bits, which resize and crop need
  const prepare = await openSession(preparation, "wasm");
  let opened, provider, remark = "";
  for (provider of gpu ? ["webgpu", "wasm"] : ["wasm"]) {
    try {
      opened = await openSession(model, provider);
      say("The first call");
      await run(new ImageData(8, 8)); // compiles what is left, and shows whether it runs
      break;
    } catch (error) {
      if (provider === "wasm") throw error;
      remark = ", as WebGPU failed";
      console.warn("WebGPU failed:", error.message);
    }
  }

  async function run(pixels) {
    const began = performance.now();
    const square = (await prepare.session.run({ image: toTensor(prepare.ort, pixels) })).pixels;
    const { Tensor } = opened.ort;
    const { logits } = await opened.session.run({ pixels: new Tensor("uint8", square.data, square.dims) });
    return { logits: Array.from(await logits.getData()), ms: performance.now() - began };
  }

  let busy = Promise.resolve(); // a session runs one image at a time
  return {
    name: settings.name,
    about: `${settings.class_names.length} classes, ${provider === "webgpu" ? "WebGPU" : "WebAssembly"}${remark}`,
    async classify(pixels) {
      const { logits, ms } = await (busy = busy.catch(() => {}).then(() => run(pixels)));
      if (!logits.every(Number.isFinite)) throw new Error("The model gives NaN or infinity for this image.");
      const highest = Math.max(...logits);
      const exps = logits.map((logit) => Math.exp(logit - highest));
      const sum = exps.reduce((total, one) => total + one, 0);
      const order = logits.map((_, c) => c).sort((a, b) => logits[b] - logits[a] || a - b);
      const answers = order.slice(0, settings.top).map((c) => ({
        label: settings.class_names[c],
        score: settings.head === "scores" ? (100 * exps[c]) / sum : null,
      }));
      const isNone = gaussians !== null && knownScore(gaussians, logits) < none.limit;
      return { answers, isNone, ms };
    },
  };
}
