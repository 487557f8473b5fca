// A packed case: its arrays, and a slice of it on a canvas. Arrays are in (z, y, x) order: z upwards, y to the back of
// the head, x to the patient's left.
//
// Why not a library: NiiVue, the best one, adds 2.3 MB to every page and needs WebGL 2, which browsers without a graphics
// card, on locked-down machines or controlled remotely often lack. Three slices of bytes need neither.

// The axis that is scrolled through, those of rows and columns, and what lies at the top, right, bottom and left edge.
const PLANES = {
  axial: { axis: 0, rows: 1, columns: 2, edges: ['A', 'L', 'P', 'R'] },
  coronal: { axis: 1, rows: 0, columns: 2, edges: ['S', 'L', 'I', 'R'] },
  sagittal: { axis: 2, rows: 0, columns: 1, edges: ['S', 'P', 'I', 'A'] },
};
const COLOURS = { reference: [53, 208, 255], prediction: [255, 154, 60], unknown: [176, 176, 176] };
const UNKNOWN = 255; // class of what is not labelled
const rgb = colour => `rgb(${colour.join(' ')})`;

const bytesOf = base64 => Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));

async function unpackMasks(packed) {
  const stream = new Blob([bytesOf(packed.masks)]).stream().pipeThrough(new DecompressionStream('deflate'));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  return { reference: bytes.subarray(0, bytes.length / 2), prediction: bytes.subarray(bytes.length / 2) };
}

async function unpackSequence(packed, sequence) {
  const grey = new Uint8Array(packed.shape[0] * packed.shape[1] * packed.shape[2]);
  const context = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  context.fillStyle = '#807060';
  context.fillRect(0, 0, 1, 1);
  const [red, green, blue] = context.getImageData(0, 0, 1, 1).data;
  if (Math.max(Math.abs(red - 0x80), Math.abs(green - 0x70), Math.abs(blue - 0x60)) > 3) { // against fingerprinting
    throw new Error('this browser keeps pages from reading pictures; allow this page to use canvas data');
  }
  let done = 0;
  for (const strip of sequence.strips) { // a strip's pixels are in the order of the array
    const picture = await createImageBitmap(new Blob([bytesOf(strip)], { type: 'image/webp' }));
    context.canvas.width = picture.width;
    context.canvas.height = picture.height;
    context.drawImage(picture, 0, 0);
    const pixels = context.getImageData(0, 0, picture.width, picture.height).data;
    for (let i = 0; i < pixels.length; i += 4) grey[done++] = pixels[i];
  }
  return grey;
}

// Row of the slice ↔ index along its axis: z is drawn upwards.
const turned = (plane, shape, at) => plane.rows === 0 ? shape[0] - 1 - at : at;

function sliceOf(volume, shape, plane, index) {
  const strides = [shape[1] * shape[2], shape[2], 1], rows = shape[plane.rows], columns = shape[plane.columns];
  const pixels = new Uint8Array(rows * columns);
  for (let r = 0, i = 0; r < rows; r++) {
    let from = index * strides[plane.axis] + turned(plane, shape, r) * strides[plane.rows];
    for (let c = 0; c < columns; c++, i++, from += strides[plane.columns]) pixels[i] = volume[from];
  }
  return pixels;
}

// What the canvas shows: `scale` pixels per mm, and the pixel of the slice's corner.
function frameOf(canvas, view, plane) {
  const { shape, spacing } = view.packed, scale = view.zoom * canvas.width / (shape[plane.columns] * spacing[plane.columns]);
  const corner = (axis, length) => {
    const middle = (axis === plane.rows ? turned(plane, shape, view.centre[axis]) : view.centre[axis]) + 0.5;
    const size = shape[axis] * spacing[axis] * scale;
    return Math.max(length - size, Math.min(0, length / 2 - middle * spacing[axis] * scale));
  };
  return { x: corner(plane.columns, canvas.width), y: corner(plane.rows, canvas.height),
    column: spacing[plane.columns] * scale, row: spacing[plane.rows] * scale, scale };
}

// The voxel under a pixel of the canvas.
function voxelAt(canvas, view, plane, x, y) {
  const frame = frameOf(canvas, view, plane), shape = view.packed.shape, voxel = [...view.cursor];
  const inside = (value, axis) => Math.max(0, Math.min(shape[axis] - 1, Math.floor(value)));
  voxel[plane.columns] = inside((x - frame.x) / frame.column, plane.columns);
  voxel[plane.rows] = turned(plane, shape, inside((y - frame.y) / frame.row, plane.rows));
  return voxel;
}

const sheet = document.createElement('canvas').getContext('2d');

function paint(context, frame, rows, columns, colourOf, smooth) {
  sheet.canvas.width = columns;
  sheet.canvas.height = rows;
  const image = sheet.createImageData(columns, rows), words = new Uint32Array(image.data.buffer);
  for (let i = 0; i < words.length; i++) words[i] = colourOf(i);
  sheet.putImageData(image, 0, 0);
  context.imageSmoothingEnabled = smooth;
  context.drawImage(sheet.canvas, frame.x, frame.y, columns * frame.column, rows * frame.row);
}

// Lines along the edges of the pixels that `has`.
function outline(context, frame, rows, columns, has, colour, width) {
  context.beginPath();
  for (let r = 0, i = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++, i++) {
      if (!has(i)) continue;
      const left = frame.x + c * frame.column, top = frame.y + r * frame.row;
      const right = left + frame.column, bottom = top + frame.row;
      if (c === 0 || !has(i - 1)) { context.moveTo(left, top); context.lineTo(left, bottom); }
      if (c === columns - 1 || !has(i + 1)) { context.moveTo(right, top); context.lineTo(right, bottom); }
      if (r === 0 || !has(i - columns)) { context.moveTo(left, top); context.lineTo(right, top); }
      if (r === rows - 1 || !has(i + columns)) { context.moveTo(left, bottom); context.lineTo(right, bottom); }
    }
  }
  context.strokeStyle = rgb(colour);
  context.lineWidth = width;
  context.lineCap = 'square';
  context.stroke();
}

// Draw a plane of the view: { packed, masks, grey, members, cursor, centre, zoom, level, window, opacity, show }.
function drawPlane(canvas, view, plane) {
  const { shape } = view.packed, context = canvas.getContext('2d'), frame = frameOf(canvas, view, plane);
  const rows = shape[plane.rows], columns = shape[plane.columns], index = view.cursor[plane.axis];
  const part = volume => sliceOf(volume, shape, plane, index);
  const reference = part(view.masks.reference), prediction = part(view.masks.prediction);
  context.fillStyle = '#000';
  context.fillRect(0, 0, canvas.width, canvas.height);
  if (view.grey) {
    const grey = part(view.grey), low = view.level - view.window / 2;
    const shades = Uint32Array.from({ length: 256 }, (_, value) => {
      const shade = value && Math.max(0, Math.min(255, Math.round((value - low) / view.window * 255)));
      return 0xff000000 | shade << 16 | shade << 8 | shade;
    });
    paint(context, frame, rows, columns, i => shades[grey[i]], true);
  } else { // the whole lesions instead
    paint(context, frame, rows, columns, i => reference[i] && reference[i] !== UNKNOWN ? 0xff404040 : 0, false);
  }
  const of = mask => i => view.members[mask[i]] === 1, inReference = of(reference), inPrediction = of(prediction);
  if (view.show.errors) {
    const word = colour => Math.round(255 * view.opacity) << 24 | colour[2] << 16 | colour[1] << 8 | colour[0];
    const missed = word(COLOURS.reference), invented = word(COLOURS.prediction);
    const error = i => inReference(i) === inPrediction(i) ? 0 : inReference(i) ? missed : invented;
    paint(context, frame, rows, columns, error, false);
  }
  const ratio = canvas.width / canvas.clientWidth;
  const unknown = i => reference[i] === UNKNOWN;
  if (reference.includes(UNKNOWN)) outline(context, frame, rows, columns, unknown, COLOURS.unknown, ratio);
  // The reference is wider, so that both are seen where they agree.
  if (view.show.reference) outline(context, frame, rows, columns, inReference, COLOURS.reference, 2.2 * ratio);
  if (view.show.prediction) outline(context, frame, rows, columns, inPrediction, COLOURS.prediction, 1.2 * ratio);
  if (view.show.cross) drawCross(context, frame, view, plane, ratio);
  if (view.show.labels) drawLabels(context, frame, plane, ratio);
}

function drawCross(context, frame, view, plane, ratio) {
  const { width, height } = context.canvas, gap = 14 * ratio;
  const x = frame.x + (view.cursor[plane.columns] + 0.5) * frame.column;
  const y = frame.y + (turned(plane, view.packed.shape, view.cursor[plane.rows]) + 0.5) * frame.row;
  context.beginPath();
  for (const [a, b] of [[0, x - gap], [x + gap, width]]) if (a < b) { context.moveTo(a, y); context.lineTo(b, y); }
  for (const [a, b] of [[0, y - gap], [y + gap, height]]) if (a < b) { context.moveTo(x, a); context.lineTo(x, b); }
  context.strokeStyle = 'rgb(255 255 255 / 45%)';
  context.lineWidth = ratio;
  context.stroke();
}

function drawLabels(context, frame, plane, ratio) {
  const { width, height } = context.canvas, pad = 5 * ratio, [top, right, bottom, left] = plane.edges;
  context.font = `600 ${12 * ratio}px system-ui, sans-serif`;
  context.lineWidth = 3 * ratio;
  context.lineJoin = 'round';
  context.strokeStyle = '#000';
  context.fillStyle = '#fff';
  const write = (text, x, y, align, baseline) => {
    context.textAlign = align;
    context.textBaseline = baseline;
    context.strokeText(text, x, y);
    context.fillText(text, x, y);
  };
  write(top, width / 2, pad, 'center', 'top');
  write(bottom, width / 2, height - pad, 'center', 'bottom');
  write(left, pad, height / 2, 'left', 'middle');
  write(right, width - pad, height / 2, 'right', 'middle');
  const length = [5, 10, 20, 50].find(mm => mm * frame.scale >= 36 * ratio) ?? 100, end = width - pad;
  context.beginPath();
  context.moveTo(end - length * frame.scale, height - pad);
  context.lineTo(end, height - pad);
  for (const [style, thickness] of [['#000', 4], ['#fff', 2]]) {
    context.strokeStyle = style;
    context.lineWidth = thickness * ratio;
    context.stroke();
  }
  context.lineWidth = 3 * ratio;
  context.strokeStyle = '#000';
  write(`${length} mm`, end, height - pad - 4 * ratio, 'right', 'bottom');
}
