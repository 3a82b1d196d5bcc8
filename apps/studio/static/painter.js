// Paints sorted Gaussians with WebGL 2. It knows a camera, no pointer and no file.

import { FLOATS } from "./splats.js";

const TEXELS = FLOATS / 4;
const WIDTH = 1023; // of the texture in texels: whole Gaussians in a row
const FOV = (40 * Math.PI) / 180;

const VERTEX = `#version 300 es
precision highp float;
precision highp sampler2D;
uniform sampler2D u_data;
uniform mat3 u_view; // world to camera
uniform float u_radius;
uniform float u_focal; // pixels
uniform vec2 u_size; // pixels
in vec2 a_corner;
in uint a_index;
out vec2 v_place;
out vec4 v_color;
vec4 texel(int k) {
  int at = int(a_index) * ${TEXELS} + k;
  return texelFetch(u_data, ivec2(at % ${WIDTH}, at / ${WIDTH}), 0);
}
void main() {
  gl_Position = vec4(2.0, 2.0, 2.0, 1.0); // seen by nobody
  vec4 a = texel(0), b = texel(1), c = texel(2);
  vec3 p = u_view * a.xyz - vec3(0.0, 0.0, u_radius);
  float depth = -p.z;
  if (depth < 0.05 || a.w < 0.004) return;
  mat3 cov = u_view * mat3(b.x, b.y, b.z, b.y, b.w, c.x, b.z, c.x, c.y) * transpose(u_view);
  float f = u_focal / depth;
  vec3 ju = vec3(f, 0.0, f * p.x / depth), jv = vec3(0.0, f, f * p.y / depth);
  float uu = dot(ju, cov * ju) + 0.3, uv = dot(ju, cov * jv), vv = dot(jv, cov * jv) + 0.3;
  float middle = 0.5 * (uu + vv);
  float spread = length(vec2(0.5 * (uu - vv), uv));
  float large = middle + spread, small = max(middle - spread, 0.1);
  vec2 axis = spread < 1e-6 ? vec2(1.0, 0.0)
    : abs(uv) < 1e-6 ? (uu >= vv ? vec2(1.0, 0.0) : vec2(0.0, 1.0)) : normalize(vec2(uv, large - uu));
  vec2 major = min(sqrt(large), 1024.0) * axis, minor = min(sqrt(small), 1024.0) * vec2(axis.y, -axis.x);
  v_place = 3.0 * a_corner;
  vec2 pixels = f * p.xy + v_place.x * major + v_place.y * minor;
  uint packed = uint(c.z + 0.5);
  v_color = vec4(float(packed & 255u), float((packed >> 8) & 255u), float(packed >> 16), 255.0 * a.w) / 255.0;
  gl_Position = vec4(2.0 * pixels / u_size, 0.0, 1.0);
}`;

const FRAGMENT = `#version 300 es
precision mediump float;
in vec2 v_place;
in vec4 v_color;
out vec4 color;
void main() {
  float square = dot(v_place, v_place);
  if (square > 9.0) discard;
  float alpha = v_color.a * exp(-0.5 * square);
  color = vec4(v_color.rgb * alpha, alpha);
}`;

export class Painter {
  #order = new Uint32Array(0);
  #splats = { count: 0, data: new Float32Array(0) };

  /** Throws an Error where the browser has no WebGL 2. */
  constructor(canvas) {
    this.canvas = canvas;
    this.gl = canvas.getContext("webgl2", { alpha: true, antialias: false, depth: false, premultipliedAlpha: true });
    if (!this.gl) throw new Error("This browser has no WebGL 2.");
    this.prepare();
  }

  /** Make what lives on the GPU; again after a lost context. */
  prepare() {
    const gl = this.gl;
    this.program = makeProgram(gl);
    gl.useProgram(this.program);
    this.places = Object.fromEntries(
      ["u_data", "u_view", "u_radius", "u_focal", "u_size"].map((name) => [name, gl.getUniformLocation(this.program, name)]),
    );
    const corner = gl.getAttribLocation(this.program, "a_corner");
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-1, -1, 1, -1, -1, 1, 1, 1]), gl.STATIC_DRAW);
    gl.enableVertexAttribArray(corner);
    gl.vertexAttribPointer(corner, 2, gl.FLOAT, false, 0, 0);
    const index = gl.getAttribLocation(this.program, "a_index");
    this.indices = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, this.indices);
    gl.enableVertexAttribArray(index);
    gl.vertexAttribIPointer(index, 1, gl.UNSIGNED_INT, 0, 0);
    gl.vertexAttribDivisor(index, 1);
    this.texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.NEAREST);
    gl.disable(gl.DEPTH_TEST);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    this.load(this.#splats);
  }

  /** Take other Gaussians. */
  load(splats) {
    const gl = this.gl;
    const limit = gl.getParameter(gl.MAX_TEXTURE_SIZE);
    const count = Math.min(splats.count, Math.floor((WIDTH / TEXELS) * limit));
    const rows = Math.max(1, Math.ceil((count * TEXELS) / WIDTH));
    const padded = new Float32Array(rows * WIDTH * 4);
    padded.set(splats.data.subarray(0, count * FLOATS));
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA32F, WIDTH, rows, 0, gl.RGBA, gl.FLOAT, padded);
    this.#splats = { count, data: splats.data };
    this.#order = new Uint32Array(count);
  }

  /** Paint as seen from `{azimuth, elevation, radius}`, in radians, into as many pixels as the canvas has. */
  paint({ azimuth, elevation, radius }) {
    const gl = this.gl;
    const { width, height } = this.canvas;
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    if (!this.#splats.count) return;
    const [ca, sa, ce, se] = [Math.cos(azimuth), Math.sin(azimuth), Math.cos(elevation), Math.sin(elevation)];
    const back = [ce * sa, se, ce * ca];
    this.#sort(back);
    // Columns: what becomes of the world's axes in the camera's (right, up, backward).
    gl.uniformMatrix3fv(this.places.u_view, false, [ca, -se * sa, back[0], 0, ce, back[1], -sa, -se * ca, back[2]]);
    gl.uniform1f(this.places.u_radius, radius);
    gl.uniform1f(this.places.u_focal, (0.5 * Math.min(width, height)) / Math.tan(FOV / 2));
    gl.uniform2f(this.places.u_size, width, height);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.indices);
    gl.bufferData(gl.ARRAY_BUFFER, this.#order, gl.DYNAMIC_DRAW);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, this.#order.length);
  }

  /** The farthest first, by counting: linear in their number. */
  #sort([bx, by, bz]) {
    const { count, data } = this.#splats;
    const nearness = new Float32Array(count);
    let [low, high] = [Infinity, -Infinity];
    for (let i = 0; i < count; i++) {
      const at = i * FLOATS;
      const value = data[at] * bx + data[at + 1] * by + data[at + 2] * bz;
      nearness[i] = value;
      if (value < low) low = value;
      if (value > high) high = value;
    }
    const bins = 65536;
    const scale = high > low ? (bins - 1) / (high - low) : 0;
    const starts = new Uint32Array(bins + 1);
    const keys = new Uint16Array(count);
    for (let i = 0; i < count; i++) {
      keys[i] = (nearness[i] - low) * scale;
      starts[keys[i] + 1]++;
    }
    for (let bin = 0; bin < bins; bin++) starts[bin + 1] += starts[bin];
    for (let i = 0; i < count; i++) this.#order[starts[keys[i]]++] = i;
  }
}

function makeProgram(gl) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) {
    throw new Error(gl.getProgramInfoLog(program) || "The shader can't be built.");
  }
  return program;
}
