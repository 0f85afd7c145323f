// dq = scale·Σ ds·k with ds = p·(dout·v − delta) and p = exp(q·k·scale − lse) over the keys that a query sees. Threads and
// data as in attention.wgsl; the scores need no running sums, for `stats` = (lse, delta) are known.
// Twin: cpu/attention.rs, `attention_backward`.
struct Params { b: u32, t: u32, h: u32, g: u32, e4: u32, capacity: u32, offset: u32, scale: f32 }

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> starts: array<i32>;
@group(0) @binding(4) var<storage, read> dout: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> stats: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read_write> dq: array<vec4<f32>>;
@group(0) @binding(7) var<uniform> params: Params;

const QUERIES: u32 = 64u;
const KEYS: u32 = 32u;
const R: u32 = 8u; // queries of a thread
const STRIDE: u32 = KEYS / 4u + 1u; // one vector more than a row has, so that rows begin in other banks
var<workgroup> sh_ds: array<vec4<f32>, QUERIES * STRIDE>;
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
    var rows: array<u32, R>;
    for (var r = 0u; r < R; r += 1u) {
        rows[r] = batch * params.t + min(first + y + 8u * r, params.t - 1u);
    }
    if (local == 0u) {
        sh_from = u32(max(starts[rows[0]], 0));
    }
    let begin = workgroupUniformLoad(&sh_from);
    var sums: array<array<vec4<f32>, 2>, R>;
    for (var tile = begin; tile < end; tile += KEYS) {
        let key = tile + 4u * x + vec4(0u, 1u, 2u, 3u);
        let ik = keys + min(key, vec4(end - 1u)) * width;
        var s = array<vec4<f32>, R>();
        var dp = array<vec4<f32>, R>();
        for (var c = 0u; c < params.e4; c += 1u) {
            let kt = transpose(mat4x4<f32>(k[ik.x + c], k[ik.y + c], k[ik.z + c], k[ik.w + c]));
            for (var r = 0u; r < R; r += 1u) {
                s[r] += kt * q[(rows[r] * params.h + head) * params.e4 + c];
            }
        }
        for (var c = 0u; c < params.e4; c += 1u) {
            let vt = transpose(mat4x4<f32>(v[ik.x + c], v[ik.y + c], v[ik.z + c], v[ik.w + c]));
            for (var r = 0u; r < R; r += 1u) {
                dp[r] += vt * dout[(rows[r] * params.h + head) * params.e4 + c];
            }
        }
        for (var r = 0u; r < R; r += 1u) {
            let stat = stats[rows[r] * params.h + head];
            let start = vec4(u32(max(starts[rows[r]], 0)));
            let ds = exp(s[r] * params.scale - stat.x) * (dp[r] - stat.y) * params.scale;
            let seen = (key >= start) & (key <= vec4(params.offset + first + y + 8u * r));
            sh_ds[(y + 8u * r) * STRIDE + x] = select(vec4(0.0), ds, seen);
        }
        workgroupBarrier();
        for (var j = 0u; j < KEYS / 4u; j += 1u) {
            let at = keys + min(tile + 4u * j + vec4(0u, 1u, 2u, 3u), vec4(end - 1u)) * width;
            let k0 = mat4x4<f32>(k[at.x + near], k[at.y + near], k[at.z + near], k[at.w + near]);
            var k1 = mat4x4<f32>();
            if (wide) {
                k1 = mat4x4<f32>(k[at.x + far], k[at.y + far], k[at.z + far], k[at.w + far]);
            }
            for (var r = 0u; r < R; r += 1u) {
                let weights = sh_ds[(y + 8u * r) * STRIDE + j];
                sums[r][0] += k0 * weights;
                sums[r][1] += k1 * weights;
            }
        }
        workgroupBarrier();
    }
    for (var r = 0u; r < R; r += 1u) {
        if (first + y + 8u * r < params.t) {
            let at = (rows[r] * params.h + head) * params.e4 + column;
            if (column < params.e4) {
                dq[at] = sums[r][0];
            }
            if (column + 8u < params.e4) {
                dq[at + 8u] = sums[r][1];
            }
        }
    }
}
