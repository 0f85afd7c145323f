// out = softmax(q·kᵀ·scale)·v with a query's keys from the beginning of its document to itself, and the log-sum-exp of the
// scores; query head i reads key/value head i·g/h. A workgroup has 64 queries of one head and 64 columns of `out`, and
// walks over its keys 32 at a time with running maxima and sums. Thread (y, x) of 8 by 8 computes the scores of the queries
// y + 8r and the keys 4x.., and the columns x and x + 8 (in fours) of the same queries; in between a thread has a query.
// Twin: cpu/attention.rs, `attention`.
struct Params { b: u32, t: u32, h: u32, g: u32, e4: u32, capacity: u32, offset: u32, scale: f32 }

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> starts: array<i32>;
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;
@group(0) @binding(6) var<uniform> params: Params;

const LOW: f32 = -1e30;
const QUERIES: u32 = 64u;
const KEYS: u32 = 32u;
const R: u32 = 8u; // queries of a thread
const STRIDE: u32 = KEYS / 4u + 1u; // one vector more than a row has, so that rows begin in other banks
var<workgroup> sh_p: array<vec4<f32>, QUERIES * STRIDE>;
var<workgroup> sh_scale: array<f32, QUERIES>;
var<workgroup> sh_from: u32;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let blocks = (params.t + QUERIES - 1u) / QUERIES;
    let chunks = (params.e4 + 15u) / 16u;
    let id = group.y * groups.x + group.x;
    let chunk = id / blocks % chunks;
    let head = id / (blocks * chunks) % params.h;
    let batch = id / (blocks * chunks * params.h);
    if (batch >= params.b) {
        return;
    }
    let first = (blocks - 1u - id % blocks) * QUERIES; // the last ones have most to do
    let end = params.offset + min(first + QUERIES, params.t);
    let width = params.g * params.e4;
    let keys = batch * params.capacity * width + head / (params.h / params.g) * params.e4;
    let y = local / 8u;
    let x = local % 8u;
    let column = chunk * 16u + x;
    let wide = chunk * 16u + 8u < params.e4;
    let near = min(column, params.e4 - 1u);
    let far = min(column + 8u, params.e4 - 1u);
    var queries: array<u32, R>;
    for (var r = 0u; r < R; r += 1u) {
        queries[r] = ((batch * params.t + min(first + y + 8u * r, params.t - 1u)) * params.h + head) * params.e4;
    }
    // The query of this thread between the products.
    let row = batch * params.t + min(first + local, params.t - 1u);
    let start = u32(max(starts[row], 0));
    let position = params.offset + first + local;
    if (local == 0u) {
        sh_from = start;
    }
    let begin = workgroupUniformLoad(&sh_from);
    var largest = LOW;
    var total = 0.0;
    var sums: array<array<vec4<f32>, 2>, R>;
    for (var tile = begin; tile < end; tile += KEYS) {
        let ik = keys + min(tile + 4u * x + vec4(0u, 1u, 2u, 3u), vec4(end - 1u)) * width;
        var s = array<vec4<f32>, R>();
        for (var c = 0u; c < params.e4; c += 1u) {
            let kt = transpose(mat4x4<f32>(k[ik.x + c], k[ik.y + c], k[ik.z + c], k[ik.w + c]));
            for (var r = 0u; r < R; r += 1u) {
                s[r] += kt * q[queries[r] + c];
            }
        }
        for (var r = 0u; r < R; r += 1u) {
            sh_p[(y + 8u * r) * STRIDE + x] = s[r] * params.scale;
        }
        workgroupBarrier();
        var p: array<vec4<f32>, KEYS / 4u>;
        var high = vec4(largest);
        for (var j = 0u; j < KEYS / 4u; j += 1u) {
            let key = tile + 4u * j + vec4(0u, 1u, 2u, 3u);
            p[j] = select(vec4(LOW), sh_p[local * STRIDE + j], (key >= vec4(start)) & (key <= vec4(position)));
            high = max(high, p[j]);
        }
        let before = largest;
        largest = max(max(high.x, high.y), max(high.z, high.w));
        total *= exp(before - largest);
        for (var j = 0u; j < KEYS / 4u; j += 1u) {
            let seen = select(exp(p[j] - largest), vec4(0.0), p[j] == vec4(LOW));
            sh_p[local * STRIDE + j] = seen;
            total += dot(seen, vec4(1.0));
        }
        sh_scale[local] = exp(before - largest);
        workgroupBarrier();
        for (var r = 0u; r < R; r += 1u) {
            sums[r][0] *= sh_scale[y + 8u * r];
            sums[r][1] *= sh_scale[y + 8u * r];
        }
        for (var j = 0u; j < KEYS / 4u; j += 1u) {
            let iv = keys + min(tile + 4u * j + vec4(0u, 1u, 2u, 3u), vec4(end - 1u)) * width;
            let v0 = mat4x4<f32>(v[iv.x + near], v[iv.y + near], v[iv.z + near], v[iv.w + near]);
            var v1 = mat4x4<f32>();
            if (wide) {
                v1 = mat4x4<f32>(v[iv.x + far], v[iv.y + far], v[iv.z + far], v[iv.w + far]);
            }
            for (var r = 0u; r < R; r += 1u) {
                let weights = sh_p[(y + 8u * r) * STRIDE + j];
                sums[r][0] += v0 * weights;
                sums[r][1] += v1 * weights;
            }
        }
        workgroupBarrier();
    }
    sh_scale[local] = 1.0 / total;
    if (first + local < params.t && chunk == 0u) {
        lse[row * params.h + head] = largest + log(total);
    }
    workgroupBarrier();
    for (var r = 0u; r < R; r += 1u) {
        if (first + y + 8u * r < params.t) {
            if (column < params.e4) {
                out[queries[r] + column] = sums[r][0] * sh_scale[y + 8u * r];
            }
            if (column + 8u < params.e4) {
                out[queries[r] + column + 8u] = sums[r][1] * sh_scale[y + 8u * r];
            }
        }
    }
}
