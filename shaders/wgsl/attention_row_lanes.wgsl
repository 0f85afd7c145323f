// `attention` for few queries on devices whose subgroups have 8 threads: workgroups of one subgroup, in which lanes have keys
// when scores are computed, and columns when values are summed. A workgroup has one query of up to four heads that share
// their keys and values, and 64 columns of `out`; it walks over the keys 32 at a time. Twin: cpu/attention.rs, `attention`.
struct Params { b: u32, t: u32, h: u32, g: u32, e4: u32, capacity: u32, offset: u32, scale: f32 }

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> starts: array<i32>;
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;
@group(0) @binding(6) var<uniform> params: Params;

const LOW: f32 = -1e30;
const HEADS: u32 = 4u;
const KEYS: u32 = 32u;

fn row_of(x: vec4<f32>, lane: u32) -> vec4<f32> {
    return vec4(subgroupShuffle(x.x, lane), subgroupShuffle(x.y, lane), subgroupShuffle(x.z, lane), subgroupShuffle(x.w, lane));
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let share = params.h / params.g;
    let quads = (share + HEADS - 1u) / HEADS;
    let chunks = (params.e4 + 15u) / 16u;
    let id = group.y * groups.x + group.x;
    let chunk = id % chunks;
    let quad = id / chunks % quads;
    let pair = id / (chunks * quads) % params.g;
    let row = id / (chunks * quads * params.g);
    if (row >= params.b * params.t) {
        return;
    }
    let heads = min(share - quad * HEADS, HEADS);
    let head = pair * share + quad * HEADS;
    let begin = u32(max(starts[row], 0));
    let end = params.offset + row % params.t + 1u;
    let width = params.g * params.e4;
    let keys = row / params.t * params.capacity * width + pair * params.e4;
    let query = (row * params.h + head) * params.e4;
    let column = chunk * 16u + lane;
    let wide = chunk * 16u + 8u < params.e4;
    let near = min(column, params.e4 - 1u);
    let far = min(column + 8u, params.e4 - 1u);
    var m = vec4(LOW);
    var total = vec4(0.0);
    var sums: array<array<vec4<f32>, 2>, HEADS>;
    for (var tile = begin; tile < end; tile += KEYS) {
        let key = tile + lane + vec4(0u, 8u, 16u, 24u);
        let ik = keys + min(key, vec4(end - 1u)) * width;
        var s = array<vec4<f32>, HEADS>();
        for (var part = 0u; part < params.e4; part += 8u) {
            var of_head = array<vec4<f32>, HEADS>();
            for (var r = 0u; r < HEADS; r += 1u) {
                if (r < heads) {
                    of_head[r] = q[query + r * params.e4 + min(part + lane, params.e4 - 1u)];
                }
            }
            for (var i = 0u; i < min(params.e4 - part, 8u); i += 1u) {
                let c = part + i;
                let kt = transpose(mat4x4<f32>(k[ik.x + c], k[ik.y + c], k[ik.z + c], k[ik.w + c]));
                for (var r = 0u; r < HEADS; r += 1u) {
                    s[r] += kt * row_of(of_head[r], i);
                }
            }
        }
        for (var r = 0u; r < HEADS; r += 1u) {
            s[r] = select(vec4(LOW), s[r] * params.scale, key < vec4(end));
            let before = m[r];
            m[r] = max(before, subgroupMax(max(max(s[r].x, s[r].y), max(s[r].z, s[r].w))));
            s[r] = select(exp(s[r] - m[r]), vec4(0.0), s[r] == vec4(LOW));
            let shrink = exp(before - m[r]);
            total[r] = total[r] * shrink + dot(s[r], vec4(1.0));
            sums[r][0] *= shrink;
            sums[r][1] *= shrink;
        }
        for (var i = 0u; i < min(end - tile, 8u); i += 1u) {
            let iv = keys + min(tile + i + vec4(0u, 8u, 16u, 24u), vec4(end - 1u)) * width;
            let v0 = mat4x4<f32>(v[iv.x + near], v[iv.y + near], v[iv.z + near], v[iv.w + near]);
            var v1 = mat4x4<f32>();
            if (wide) {
                v1 = mat4x4<f32>(v[iv.x + far], v[iv.y + far], v[iv.z + far], v[iv.w + far]);
            }
            for (var r = 0u; r < HEADS; r += 1u) {
                let weights = row_of(s[r], i);
                sums[r][0] += v0 * weights;
                sums[r][1] += v1 * weights;
            }
        }
    }
    for (var r = 0u; r < HEADS; r += 1u) {
        let all = subgroupAdd(total[r]);
        let to = query + r * params.e4 + column;
        if (r < heads && column < params.e4) {
            out[to] = sums[r][0] / all;
        }
        if (r < heads && column + 8u < params.e4) {
            out[to + 8u] = sums[r][1] / all;
        }
        if (r < heads && column == 0u) {
            lse[row * params.h + head + r] = m[r] + log(all);
        }
    }
}
