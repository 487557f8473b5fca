// The viewer: what its controls, the mouse, fingers, keys and the page's links do. A case is unpacked when it is opened.
(() => {
const root = document.getElementById('viewer');
if (!root) return;
const about = JSON.parse(document.getElementById('viewer-data').textContent);
const find = selector => root.querySelector(selector);
const text = name => find(`[data-text=${name}]`);
const setting = name => find(`[data-set=${name}]`);
const WORDS = { missed: 'Missed', 'false positive': 'False positive', poor: 'Poor', found: 'Found' };
const CLOSE = 2.5; // zoom at which a lesion is shown
const THUMBNAIL = 40, THUMBNAILS = 24; // mm across, and how many of the listed lesions have one
const view = { case: -1, region: about.region, sequence: '', zoom: 1, opacity: 0.45, lesion: null,
  show: { reference: true, prediction: true, errors: true, cross: true, labels: true } };
const planes = [...root.querySelectorAll('.plane')].map(box => ({
  ...PLANES[box.dataset.plane], name: box.querySelector('label').textContent.trim(), box, canvas: box.querySelector('canvas'),
  slider: box.querySelector('input'), label: box.querySelector('[data-text=slice]'),
}));
let opening = 0, cameFrom = null;

// --- drawing

let due = false, thumbnailsDue = false;
function redraw() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    if (view.packed) planes.forEach(drawOne);
    if (thumbnailsDue) drawThumbnails();
  });
}

function drawThumbnails() {
  thumbnailsDue = false;
  const { shape, spacing, lesions } = view.packed, zoom = shape[2] * spacing[2] / THUMBNAIL;
  text('lesions').querySelectorAll('canvas').forEach((canvas, i) => {
    const { at } = lesions[view.region][i];
    canvas.width = canvas.height = Math.round(canvas.clientWidth * (window.devicePixelRatio || 1));
    drawPlane(canvas, { ...view, cursor: at, centre: at, zoom, show: { reference: true, prediction: true } }, PLANES.axial);
  });
}

function drawOne(plane) {
  const { canvas, slider } = plane, ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight].map(length => Math.max(1, Math.round(length * ratio)));
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const at = view.cursor[plane.axis] + 1, total = view.packed.shape[plane.axis];
  slider.max = total;
  slider.value = at;
  plane.label.textContent = `${at} / ${total}`;
  slider.setAttribute('aria-valuetext', `slice ${at} of ${total}`);
  canvas.setAttribute('aria-label', `${plane.name} slice ${at} of ${total} of ${about.cases[view.case].name}`);
  drawPlane(canvas, view, plane);
}

function move(cursor) {
  const { shape } = view.packed;
  view.cursor = cursor.map((at, axis) => Math.max(0, Math.min(shape[axis] - 1, at)));
  view.cursor.forEach((at, axis) => { // what is shown follows as far as it must
    const half = 0.45 * shape[axis] / view.zoom;
    view.centre[axis] = Math.max(at - half, Math.min(at + half, view.centre[axis]));
  });
  redraw();
}

const scroll = (plane, slices) => move(view.cursor.map((at, axis) => axis === plane.axis ? at + slices : at));

// --- opening a case

function packedCase(number) {
  const inside = document.getElementById(`volumes-${number}`);
  if (inside) return JSON.parse(inside.textContent);
  return new Promise((resolve, reject) => {
    const script = document.createElement('script');
    script.src = `report_cases/${number}.js`;
    script.onload = () => { resolve(window.packed[number]); delete window.packed[number]; script.remove(); };
    script.onerror = () => reject(new Error(`${script.src} is missing; keep report_cases beside this page`));
    document.head.append(script);
  });
}

async function open(number, region = view.region, lesion = null) {
  const mine = ++opening;
  setting('case').value = number;
  if (number !== view.case) {
    text('status').textContent = 'Opening …';
    root.setAttribute('aria-busy', 'true');
    try {
      const packed = await packedCase(number), masks = await unpackMasks(packed);
      if (packed.case !== about.cases[number].name) throw new Error('report_cases belongs to another report');
      const sequence = packed.sequences.find(each => each.name === view.sequence) ?? packed.sequences[0];
      const grey = sequence && await unpackSequence(packed, sequence);
      if (mine !== opening) return;
      Object.assign(view, { case: number, packed, masks, grey, greys: sequence ? { [sequence.name]: grey } : {},
        cursor: packed.shape.map(n => n >> 1), centre: packed.shape.map(n => n / 2), zoom: 1 });
      prepare(sequence);
    } catch (error) {
      text('status').textContent = `This case cannot be opened: ${error.message}`;
      return;
    } finally {
      if (mine === opening) root.removeAttribute('aria-busy');
    }
  }
  showRegion(region, lesion);
}

// Fit the controls and planes to the case that has just been opened.
function prepare(sequence) {
  const { shape, spacing, sequences } = view.packed, names = sequences.map(each => each.name);
  text('facts').textContent = about.cases[view.case].facts;
  planes.forEach(plane => {
    const [height, width] = [plane.rows, plane.columns].map(axis => shape[axis] * spacing[axis]);
    plane.box.style.setProperty('--width', width);
    plane.canvas.style.aspectRatio = `${width} / ${height}`;
  });
  const choice = find('[data-choice=sequence]');
  choice.querySelectorAll('label').forEach(label => label.remove());
  for (const name of names) {
    const label = document.createElement('label'), input = document.createElement('input');
    Object.assign(input, { type: 'radio', name: 'sequence', value: name });
    label.append(input, Object.assign(document.createElement('span'), { textContent: name }));
    choice.append(label);
  }
  choice.hidden = !sequence;
  text('masks-only').hidden = Boolean(sequence);
  if (sequence) showSequence(sequence.name);
}

async function showSequence(name) {
  const { packed } = view, sequence = packed.sequences.find(each => each.name === name);
  view.sequence = name;
  find(`[name=sequence][value="${name}"]`).checked = true;
  view.greys[name] ??= unpackSequence(packed, sequence);
  const grey = await view.greys[name];
  if (packed !== view.packed || name !== view.sequence) return;
  view.grey = grey;
  thumbnailsDue = true;
  windowOf(sequence);
}

function windowOf(sequence) {
  const [low, high] = sequence.window;
  adjust({ level: (low + high) / 2, window: high - low });
}

function adjust(values) {
  Object.assign(view, values);
  for (const name of Object.keys(values)) setting(name).value = view[name];
  if (view.packed) move(view.cursor);
}

// --- lesions

function showRegion(region, id) {
  view.region = region;
  view.members = new Uint8Array(256);
  about.regions[region].forEach(index => { view.members[index] = 1; });
  find(`[name=region][value="${region}"]`).checked = true;
  const lesions = view.packed.lesions[region];
  text('lesions').replaceChildren(...lesions.map((lesion, i) => {
    const item = document.createElement('li'), button = document.createElement('button');
    const dice = lesion.dice ? `, Dice ${lesion.dice.toFixed(2)}` : '';
    button.type = 'button';
    button.className = lesion.kind.replace(' ', '-');
    if (i < THUMBNAILS) button.append(document.createElement('canvas'));
    button.append(`${WORDS[lesion.kind]} ${volumeOf(lesion)}${dice}`);
    button.addEventListener('click', () => showLesion(lesion));
    item.append(button);
    return item;
  }));
  const wanted = lesions.find(lesion => lesion.id === id);
  root.querySelectorAll('[data-do=next], [data-do=previous]').forEach(button => { button.disabled = !lesions.length; });
  text('status').textContent = lesions.length ? '' : `No lesion of ${region.toUpperCase()} in this case.`;
  view.lesion = null;
  thumbnailsDue = true;
  if (wanted) showLesion(wanted);
  else if (lesions.length) showLesion(lesions[0], view.zoom);
  redraw();
}

const volumeOf = ({ volume }) => `${volume < 10 ? volume.toFixed(1) : Math.round(volume).toLocaleString('en')} mm³`;

function showLesion(lesion, zoom = Math.max(CLOSE, view.zoom)) {
  const lesions = view.packed.lesions[view.region], place = lesions.indexOf(lesion);
  Object.assign(view, { lesion, cursor: lesion.at, centre: [...lesion.at] });
  adjust({ zoom });
  text('status').textContent =
    `${WORDS[lesion.kind]} lesion, ${volumeOf(lesion)}, ${place + 1} of ${lesions.length} listed.`;
  [...text('lesions').querySelectorAll('button')].forEach((button, i) => {
    button.setAttribute('aria-pressed', i === place);
    if (i === place) text('lesions').scrollTop = button.offsetTop - text('lesions').clientHeight / 2;
  });
}

function nextLesion(step) {
  const lesions = view.packed.lesions[view.region], n = lesions.length;
  if (n) showLesion(lesions[(lesions.indexOf(view.lesion) + step + n) % n]);
}

// --- controls

const ACTIONS = {
  next: () => nextLesion(1),
  previous: () => nextLesion(-1),
  reset: () => {
    view.centre = [...view.cursor];
    adjust({ zoom: 1, opacity: 0.45 });
    const sequence = view.packed.sequences.find(each => each.name === view.sequence);
    if (sequence) windowOf(sequence);
  },
  back: () => { cameFrom.focus(); cameFrom.scrollIntoView({ block: 'center' }); },
};
root.addEventListener('click', event => {
  const button = event.target.closest('[data-do]');
  if (button && (view.packed || button.dataset.do === 'back')) ACTIONS[button.dataset.do]();
});
root.addEventListener('input', event => {
  const { dataset, name, value, checked } = event.target;
  if (dataset.set === 'case') open(Number(value));
  else if (!view.packed) return;
  else if (dataset.set) adjust({ [dataset.set]: Number(value) });
  else if (dataset.show) { view.show[dataset.show] = checked; redraw(); }
  else if (name === 'sequence') showSequence(value);
  else if (name === 'region') showRegion(value);
});

function toggle(...names) {
  const on = !view.show[names[0]];
  for (const name of names) view.show[name] = find(`[data-show=${name}]`).checked = on;
  redraw();
}

function nextSequence() {
  const names = view.packed.sequences.map(each => each.name);
  if (names.length) showSequence(names[(names.indexOf(view.sequence) + 1) % names.length]);
}

const zoomBy = factor => adjust({ zoom: Math.max(1, Math.min(8, view.zoom * factor)) });
const KEYS = {
  n: ACTIONS.next, p: ACTIONS.previous, s: nextSequence, o: () => toggle('reference', 'prediction'),
  e: () => toggle('errors'), c: () => toggle('cross'), '+': () => zoomBy(1.25), '-': () => zoomBy(0.8), 0: ACTIONS.reset,
};
root.addEventListener('keydown', event => {
  const act = KEYS[event.key.toLowerCase()];
  if (!act || !view.packed || event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === 'SELECT') return;
  event.preventDefault();
  act();
});

// --- mouse and fingers

let pageScrolled = -Infinity;
window.addEventListener('scroll', event => { pageScrolled = event.timeStamp; }, { passive: true });

function voxelUnder(plane, event) {
  const ratio = plane.canvas.width / plane.canvas.clientWidth;
  return voxelAt(plane.canvas, view, plane, event.offsetX * ratio, event.offsetY * ratio);
}

planes.forEach(plane => {
  const { canvas, slider } = plane;
  let drag = null, turn = 0;
  slider.addEventListener('input', event => {
    event.stopPropagation();
    if (view.packed) scroll(plane, slider.value - 1 - view.cursor[plane.axis]);
  });
  canvas.addEventListener('wheel', event => {
    // A turn that scrolls the page goes on doing so, and a slice too far goes to the page.
    if (!view.packed || event.ctrlKey || event.timeStamp - pageScrolled < 200) return;
    const at = view.cursor[plane.axis], end = event.deltaY < 0 ? 0 : view.packed.shape[plane.axis] - 1;
    if (at === end) return;
    event.preventDefault();
    turn += event.deltaMode ? event.deltaY * 30 : event.deltaY; // a wheel's notch is about 100, a touchpad sends less
    const slices = Math.trunc(turn / 30);
    turn -= 30 * slices;
    if (slices) scroll(plane, Math.max(-3, Math.min(3, slices)));
  }, { passive: false });
  canvas.addEventListener('contextmenu', event => event.preventDefault());
  canvas.addEventListener('pointerdown', event => {
    if (!view.packed) return;
    canvas.setPointerCapture(event.pointerId);
    drag = { x: event.clientX, y: event.clientY, from: view.cursor[plane.axis], level: view.level, window: view.window,
      kind: event.pointerType === 'touch' ? 'swipe' : event.button === 2 ? 'window' : 'cross', moved: false };
    if (drag.kind === 'cross') move(voxelUnder(plane, event));
    slider.focus({ preventScroll: true });
    if (event.pointerType !== 'touch') event.preventDefault();
  });
  canvas.addEventListener('pointermove', event => {
    if (!drag) return;
    const x = event.clientX - drag.x, y = event.clientY - drag.y;
    drag.moved ||= Math.hypot(x, y) > 8;
    if (drag.kind === 'cross') move(voxelUnder(plane, event));
    else if (drag.kind === 'swipe' && drag.moved) scroll(plane, drag.from + Math.round(x / 5) - view.cursor[plane.axis]);
    else if (drag.kind === 'window') {
      adjust({ level: Math.max(0, Math.min(255, drag.level + y / 2)), window: Math.max(2, Math.min(510, drag.window + x)) });
    }
  });
  canvas.addEventListener('pointerup', event => {
    if (drag?.kind === 'swipe' && !drag.moved) move(voxelUnder(plane, event));
    drag = null;
  });
  canvas.addEventListener('pointercancel', () => { drag = null; });
  new ResizeObserver(redraw).observe(canvas);
});

// --- links to a case or lesion, #case-3 or #case-3-et-f2, and the first case when it comes into sight

function follow(hash) {
  const found = /^#case-(\d+)(?:-(.+)-(f?\d+))?$/.exec(hash);
  if (!found || !about.cases[found[1]]) return false;
  open(Number(found[1]), found[2], found[3]);
  return true;
}

document.addEventListener('click', event => {
  const link = event.target.closest('a[href^="#case-"]');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  history.replaceState(null, '', link.hash);
  follow(link.hash);
  cameFrom = link;
  const back = find('[data-do=back]');
  back.hidden = false;
  back.focus({ preventScroll: true });
  root.scrollIntoView({ block: 'start' });
});
if (follow(location.hash)) root.scrollIntoView();
else {
  const seen = new IntersectionObserver(entries => {
    if (!entries.some(entry => entry.isIntersecting)) return;
    seen.disconnect();
    if (view.case < 0 && !opening) open(0);
  }, { rootMargin: '200px' });
  seen.observe(root);
}
})();
