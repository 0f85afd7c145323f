// dk = scale·Σ ds·q and dv = Σ p·dout over the queries of a group's heads that see a key, with ds and p as in
// attention_dq.wgsl. A workgroup has 64 keys and 64 columns of one of the two, and walks over queries 32 at a time. Thread
// (y, x) of 8 by 8 computes the scores of the keys y + 8r and the queries 4x.., and the columns x and x + 8 (in fours).
// Twin: cpu/attention.rs, `attention_backward`.
struct Params { b: u32, t: u32, h: u32, g: u32, e4: u32, capacity: u32, offset: u32, scale: f32 }

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> starts: array<i32>;
@group(0) @binding(4) var<storage, read> dout: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> stats: array<vec2<f32>>;
@group(0) @binding(6) var<storage, read_write> dk: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> dv: array<vec4<f32>>;
@group(0) @binding(8) var<uniform> params: Params;

const KEYS: u32 = 64u;
const QUERIES: u32 = 32u;
const R: u32 = 8u; // keys of a thread
const STRIDE: u32 = QUERIES / 4u + 1u; // one vector more than a row has, so that rows begin in other banks
var<workgroup> sh_weights: array<vec4<f32>, KEYS * STRIDE>;
var<workgroup> sh_to: u32;

// Queries of a sequence up to the last one whose document begins at `key` or before it: beginnings never fall.
fn queries_from(batch: u32, key: u32) -> u32 {
    var low = 0u;
    var high = params.t;
    while (low < high) {
        let middle = (low + high) / 2u;
        if (starts[batch * params.t + middle] <= i32(key)) {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    return low;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let filled = params.offset + params.t;
    let blocks = (params.capacity + KEYS - 1u) / KEYS;
    let chunks = (params.e4 + 15u) / 16u;
    let id = group.y * groups.x + group.x;
    let first = id % blocks * KEYS;
    let chunk = id / blocks % chunks;
    let of_k = id / (blocks * chunks) % 2u == 0u;
    let pair = id / (blocks * chunks * 2u) % params.g;
    let batch = id / (blocks * chunks * 2u * params.g);
    if (batch >= params.b) {
        return;
    }
    let share = params.h / params.g;
    let y = local / 8u;
    let x = local % 8u;
    let column = chunk * 16u + x;
    let wide = chunk * 16u + 8u < params.e4;
    let near = min(column, params.e4 - 1u);
    let far = min(column + 8u, params.e4 - 1u);
    var keys: array<u32, R>;
    for (var r = 0u; r < R; r += 1u) {
        keys[r] = ((batch * params.capacity + min(first + y + 8u * r, params.capacity - 1u)) * params.g + pair) * params.e4;
    }
    if (local == 0u) {
        sh_to = select(0u, queries_from(batch, first + KEYS - 1u), first < filled);
    }
    let to = workgroupUniformLoad(&sh_to);
    var sums: array<array<vec4<f32>, 2>, R>;
    for (var head = pair * share; head < (pair + 1u) * share; head += 1u) {
        for (var tile = max(first, params.offset) - params.offset; tile < to; tile += QUERIES) {
            let query = tile + 4u * x + vec4(0u, 1u, 2u, 3u);
            let row = batch * params.t + min(query, vec4(params.t - 1u));
            let iq = (row * params.h + head) * params.e4;
            var s = array<vec4<f32>, R>();
            var dp = array<vec4<f32>, R>();
            for (var c = 0u; c < params.e4; c += 1u) {
                let qt = transpose(mat4x4<f32>(q[iq.x + c], q[iq.y + c], q[iq.z + c], q[iq.w + c]));
                for (var r = 0u; r < R; r += 1u) {
                    s[r] += qt * k[keys[r] + c];
                }
            }
            if (of_k) {
                for (var c = 0u; c < params.e4; c += 1u) {
                    let dt = transpose(mat4x4<f32>(dout[iq.x + c], dout[iq.y + c], dout[iq.z + c], dout[iq.w + c]));
                    for (var r = 0u; r < R; r += 1u) {
                        dp[r] += dt * v[keys[r] + c];
                    }
                }
            }
            let at = row * params.h + head;
            let stat = transpose(mat4x2<f32>(stats[at.x], stats[at.y], stats[at.z], stats[at.w]));
            let start = vec4(starts[row.x], starts[row.y], starts[row.z], starts[row.w]);
            let position = select(vec4(0u), params.offset + query + 1u, query < vec4(params.t)); // after the last key it sees
            for (var r = 0u; r < R; r += 1u) {
                var weights = exp(s[r] * params.scale - stat[0]);
                if (of_k) {
                    weights *= (dp[r] - stat[1]) * params.scale;
                }
                let key = first + y + 8u * r;
                sh_weights[(y + 8u * r) * STRIDE + x] = select(vec4(0.0), weights, (vec4(i32(key)) >= start) & (vec4(key) < position));
            }
            workgroupBarrier();
            for (var j = 0u; j < QUERIES / 4u; j += 1u) {
                let from_rows = batch * params.t + min(tile + 4u * j + vec4(0u, 1u, 2u, 3u), vec4(params.t - 1u));
                let i0 = (from_rows * params.h + head) * params.e4 + near;
                let i1 = i0 - near + far;
                var x0: mat4x4<f32>;
                var x1 = mat4x4<f32>();
                if (of_k) {
                    x0 = mat4x4<f32>(q[i0.x], q[i0.y], q[i0.z], q[i0.w]);
                    if (wide) {
                        x1 = mat4x4<f32>(q[i1.x], q[i1.y], q[i1.z], q[i1.w]);
                    }
                } else {
                    x0 = mat4x4<f32>(dout[i0.x], dout[i0.y], dout[i0.z], dout[i0.w]);
                    if (wide) {
                        x1 = mat4x4<f32>(dout[i1.x], dout[i1.y], dout[i1.z], dout[i1.w]);
                    }
                }
                for (var r = 0u; r < R; r += 1u) {
                    let weights = sh_weights[(y + 8u * r) * STRIDE + j];
                    sums[r][0] += x0 * weights;
                    sums[r][1] += x1 * weights;
                }
            }
            workgroupBarrier();
        }
    }
    for (var r = 0u; r < R; r += 1u) {
        if (first + y + 8u * r < params.capacity) {
            for (var i = 0u; i < 2u; i += 1u) {
                if (column + 8u * i < params.e4) {
                    if (of_k) {
                        dk[keys[r] + column + 8u * i] = sums[r][i];
                    } else {
                        dv[keys[r] + column + 8u * i] = sums[r][i];
                    }
                }
            }
        }
    }
}
