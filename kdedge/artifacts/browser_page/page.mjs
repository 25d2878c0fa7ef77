// The page: an image or the camera in, the model's classes out.

import { loadClassifier } from "./classify.mjs";

const MOST_PIXELS = 16e6; // larger images are made smaller first: the graph needs 40 bytes a pixel
const at = (id) => document.getElementById(id);
const canvas = at("canvas");
const context = canvas.getContext("2d", { willReadFrequently: true });
let camera = null; // the stream of a running camera
let latest = 0; // the number of the image or camera that was chosen last

function say(text) {
  at("status").textContent = text;
}

function fail(error) {
  at("error").hidden = false;
  at("error").textContent = error?.message ?? String(error);
}

function show({ answers, isNone, ms }, note = "") {
  at("error").hidden = true;
  const rows = isNone ? [{ label: "none", score: null }, ...answers] : answers;
  at("answers").replaceChildren(...rows.map(({ label, score }) => {
    const row = document.createElement("li");
    const [name, percent] = [document.createElement("span"), document.createElement("span")];
    name.textContent = label;
    row.append(name);
    if (score !== null) {
      percent.textContent = `${score.toFixed(2)} %`;
      const bar = document.createElement("meter");
      bar.max = 100;
      bar.value = score;
      row.append(percent, bar);
    }
    return row;
  }));
  say(`${classifier.about}, ${ms.toFixed(0)} ms${note}`);
}

// Draws a source over white, as transparent parts are classified, and gives its pixels.
function draw(source, width, height) {
  [canvas.width, canvas.height] = [width, height];
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(source, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

async function classifyFile(file) {
  stopCamera();
  const number = ++latest;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    throw new Error(`${file.name} is not an image that this browser can read.`);
  }
  if (number !== latest) return;
  const { width, height } = bitmap;
  const factor = Math.min(1, Math.sqrt(MOST_PIXELS / (width * height)));
  const size = [width, height].map((side) => Math.max(1, Math.floor(side * factor)));
  context.imageSmoothingQuality = "high";
  const pixels = draw(bitmap, ...size);
  bitmap.close();
  const result = await classifier.classify(pixels);
  const note = factor < 1 ? `; made smaller, to ${size.join(" x ")} pixels` : "";
  if (number === latest) show(result, note);
}

function stopCamera() {
  camera?.getTracks().forEach((track) => track.stop());
  camera = null;
  at("camera").textContent = "Camera";
}

async function startCamera() {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Error("The camera needs https:// or localhost.");
  }
  const number = ++latest;
  const video = at("video");
  at("camera").disabled = true; // a second click while the browser asks would open another stream
  try {
    camera = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    throw new Error(`The camera cannot be opened: ${error.message}.`);
  } finally {
    at("camera").disabled = false;
  }
  if (number !== latest) return stopCamera(); // an image was chosen meanwhile
  video.srcObject = camera;
  await video.play();
  at("camera").textContent = "Stop";
  camera.getVideoTracks()[0].addEventListener("ended", stopCamera);
  while (camera && number === latest) {
    if (video.videoWidth) show(await classifier.classify(draw(video, video.videoWidth, video.videoHeight)));
    await new Promise(requestAnimationFrame);
  }
}

const tried = (work) => work().catch((error) => { stopCamera(); fail(error); });
let classifier;

try {
  classifier = await loadClassifier(say);
  at("name").textContent = document.title = classifier.name;
  say(`${classifier.about}, ready`);
  at("file").disabled = at("camera").disabled = false;
  at("file").addEventListener("change", ({ target }) => {
    if (target.files.length) tried(() => classifyFile(target.files[0]));
    target.value = "";
  });
  at("camera").addEventListener("click", () => (camera ? stopCamera() : tried(startCamera)));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (file) tried(() => classifyFile(file));
  });
} catch (error) {
  say("The model is not loaded.");
  fail(error);
}
