// Gaussians from a file: .splat (32 bytes each) and the .ply of 3D Gaussian Splatting. A file is not trusted.

export const FLOATS = 12; // of one Gaussian: centre, opacity | covariance xx, xy, xz, yy | yz, zz, colour, unused
const MOST = 2_000_000;
const SH_C0 = 0.28209479177387814;

/** The Gaussians of a file's bytes: `{count, data}`, `FLOATS` numbers each. Throws an Error that says what is wrong. */
export function readSplats(buffer) {
  const head = new Uint8Array(buffer, 0, Math.min(4, buffer.byteLength));
  return String.fromCharCode(...head).startsWith("ply") ? readPly(buffer) : readSplat(buffer);
}

function readSplat(buffer) {
  if (!buffer.byteLength || buffer.byteLength % 32) throw new Error("The splat file is cut off.");
  const count = Math.min(MOST, buffer.byteLength / 32);
  const floats = new Float32Array(buffer, 0, count * 8);
  const bytes = new Uint8Array(buffer, 0, count * 32);
  const out = new Float32Array(count * FLOATS);
  for (let i = 0; i < count; i++) {
    const at = i * 32;
    const quaternion = [0, 1, 2, 3].map((k) => (bytes[at + 28 + k] - 128) / 128);
    const scale = floats.subarray(i * 8 + 3, i * 8 + 6);
    const rgb = [bytes[at + 24], bytes[at + 25], bytes[at + 26]];
    put(out, i, floats.subarray(i * 8, i * 8 + 3), scale, quaternion, rgb, bytes[at + 27] / 255);
  }
  return { count, data: out };
}

function readPly(buffer) {
  const text = new TextDecoder("latin1").decode(new Uint8Array(buffer, 0, Math.min(buffer.byteLength, 20_000)));
  const end = text.indexOf("end_header\n");
  const match = /format binary_little_endian[^]*?element vertex (\d{1,9})\n([^]*?)end_header\n/.exec(text);
  if (end < 0 || !match) throw new Error("The file is no PLY of Gaussians.");
  const names = [...match[2].matchAll(/property (\S+) (\S+)\n/g)].map((found) => {
    if (found[1] !== "float") throw new Error("The PLY holds other numbers than floats.");
    return found[2];
  });
  const count = Math.min(MOST, Number(match[1]));
  const start = end + "end_header\n".length;
  if (start + count * names.length * 4 > buffer.byteLength) throw new Error("The PLY is cut off.");
  const wanted = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", "scale_0", "scale_1", "scale_2"];
  const place = [...wanted, "rot_0", "rot_1", "rot_2", "rot_3"].map((name) => names.indexOf(name));
  if (place.includes(-1)) throw new Error("The file is no PLY of Gaussians.");
  const rows = new Float32Array(buffer.slice(start, start + count * names.length * 4));
  const out = new Float32Array(count * FLOATS);
  for (let i = 0; i < count; i++) {
    const v = place.map((k) => rows[i * names.length + k]);
    const rgb = [3, 4, 5].map((k) => 255 * Math.min(1, Math.max(0, 0.5 + SH_C0 * v[k])));
    const length = Math.hypot(v[10], v[11], v[12], v[13]) || 1;
    const quaternion = [10, 11, 12, 13].map((k) => v[k] / length);
    put(out, i, v, [7, 8, 9].map((k) => Math.exp(Math.min(v[k], 10))), quaternion, rgb, 1 / (1 + Math.exp(-v[6])));
  }
  return { count, data: out };
}

/** Write a Gaussian; one that is not finite becomes invisible. */
function put(out, i, centre, scale, [w, x, y, z], rgb, opacity) {
  const at = i * FLOATS;
  const m = [
    1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
    2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
    2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
  ];
  const s = [scale[0] ** 2, scale[1] ** 2, scale[2] ** 2];
  const entry = (a, b) => m[3 * a] * m[3 * b] * s[0] + m[3 * a + 1] * m[3 * b + 1] * s[1] + m[3 * a + 2] * m[3 * b + 2] * s[2];
  const values = [
    centre[0], centre[1], centre[2], opacity,
    entry(0, 0), entry(0, 1), entry(0, 2), entry(1, 1),
    entry(1, 2), entry(2, 2), Math.round(rgb[0]) + 256 * Math.round(rgb[1]) + 65536 * Math.round(rgb[2]), 0,
  ];
  if (values.every(Number.isFinite)) out.set(values, at);
}
