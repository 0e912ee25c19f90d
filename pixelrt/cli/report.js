"use strict";
// Everything is readable without this script; it adds zoom, amplification, wipe and flicker.

const factorOf = step => [1, 2, 5][step % 3] * 10 ** Math.floor(step / 3);
const inWords = factor => "× " + factor.toLocaleString("en").replaceAll(",", "\u2009");

// Differences arrive as pack_difference() of report_pictures.py made them.
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const halves = new Uint8Array(await new Response(stream).arrayBuffer());
  const count = halves.length / 2;
  const bits = new Uint32Array(count);
  for (let i = 0; i < count; i++) bits[i] = (halves[i] << 24) | (halves[count + i] << 16);
  return { bits, values: new Float32Array(bits.buffer) };
}

function paint(canvas, { bits, values }, factor) {
  const image = new ImageData(canvas.width, canvas.height);
  const pixels = image.data;
  for (let i = 0; i < values.length; i++) {
    const grey = Math.round(Math.min(Math.abs(values[i]) * factor, 1) * 255);
    let colour = [grey, grey, grey];
    if (bits[i] >>> 31) colour = [Math.max(grey, 110), grey * 0.3, grey * 0.3];
    if (Number.isNaN(values[i])) colour = [255, 0, 255];
    pixels.set([...colour, 255], 4 * i);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function amplifier(figure) {
  const img = figure.querySelector("img");
  const slider = figure.querySelector("input");
  const text = figure.querySelector(".factor");
  const own = slider.value;
  let data, canvas;

  async function show() {
    const factor = factorOf(+slider.value);
    text.textContent = inWords(factor);
    slider.setAttribute("aria-valuetext", inWords(factor));
    data ??= unpack(img.dataset.difference);
    const unpacked = await data;
    if (!canvas) {
      canvas = document.createElement("canvas");
      canvas.width = img.naturalWidth;
      canvas.height = img.naturalHeight;
      canvas.setAttribute("role", "img");
      img.replaceWith(canvas);
    }
    // The slider may have moved while the data was unpacked.
    paint(canvas, unpacked, factorOf(+slider.value));
    canvas.setAttribute("aria-label", img.alt.replace(/times .*$/, "times " + factorOf(+slider.value)));
  }
  slider.addEventListener("input", show);
  return step => { slider.value = step === "" ? own : step; show(); };
}

function comparison(figure) {
  const stack = figure.querySelector(".stack");
  const slider = figure.querySelector("input");
  const button = figure.querySelector("button");
  const over = figure.closest(".sample").querySelector(".reference img").cloneNode();
  let timer = 0;

  function wipe(percent) {
    stack.style.setProperty("--wipe", percent + "%");
    stack.classList.toggle("wiping", percent > 0 && percent < 100);
  }
  function stop() {
    clearInterval(timer);
    timer = 0;
    button.setAttribute("aria-pressed", "false");
    wipe(+slider.value);
  }
  function flicker() {
    if (timer) return stop();
    let on = true;
    wipe(100);
    // Half a second each: well under three flashes a second (WCAG 2.3.1).
    timer = setInterval(() => { on = !on; wipe(on ? 100 : 0); }, 500);
    button.setAttribute("aria-pressed", "true");
  }
  over.className = "over";
  over.alt = "";
  wipe(0);
  stack.append(over);
  slider.addEventListener("input", stop);
  button.addEventListener("click", flicker);
}

function zoom(value) {
  const root = document.documentElement;
  root.classList.toggle("zoomed", value !== "");
  root.style.setProperty("--zoom", value);
  makeScrollable();
}

// What scrolls can be reached with the keyboard; what does not is no stop on the way.
function makeScrollable() {
  for (const frame of document.querySelectorAll(".frame")) {
    const scrolls = frame.scrollWidth > frame.clientWidth || frame.scrollHeight > frame.clientHeight;
    if (scrolls) frame.tabIndex = 0; else frame.removeAttribute("tabindex");
  }
}

function scrollTogether(sample) {
  const frames = [...sample.querySelectorAll(".frame")];
  for (const frame of frames) frame.addEventListener("scroll", () => {
    for (const other of frames) {
      if (other.scrollLeft !== frame.scrollLeft) other.scrollLeft = frame.scrollLeft;
      if (other.scrollTop !== frame.scrollTop) other.scrollTop = frame.scrollTop;
    }
  }, { passive: true });
}

// Browsers without DecompressionStream (before 2023) keep the plain page.
if (typeof DecompressionStream === "function") {
  document.documentElement.classList.add("scripted");
  const amplifiers = [...document.querySelectorAll(".difference")].map(amplifier);
  document.querySelectorAll(".output").forEach(comparison);
  document.querySelectorAll(".sample").forEach(scrollTogether);
  const zoomSelect = document.getElementById("zoom");
  const allSelect = document.getElementById("amplify-all");
  addEventListener("load", makeScrollable);
  addEventListener("resize", makeScrollable);
  zoomSelect.addEventListener("change", () => zoom(zoomSelect.value));
  allSelect.addEventListener("change", () => amplifiers.forEach(set => set(allSelect.value)));
}
