// Attention of one new token a row over the keys from the beginning of its text, where a subgroup has eight lanes: they are a
// workgroup, and have keys when scores are computed, columns when values are summed. It has one query of up to four heads that
// share their keys, 64 columns, and one of `splits` runs of keys, of which it takes 32 at a time; it leaves what
// decode_attention.wgsl leaves. Twin: cpu/decode.rs, `decode_attention`.
struct Params {
    rows: u32, heads: u32, groups: u32, e4: u32, // e4: numbers of a head, in fours
    capacity: u32, splits: u32,
    scale: f32, // 1/√e
    unused: u32,
}
struct Row { token: u32, column: u32, start: u32, step: u32 } // column of the newest key; where its text begins

@group(0) @binding(0) var<storage, read> q: array<vec4<f32>>; // [rows, heads·e]
@group(0) @binding(1) var<storage, read> keys: array<vec4<f32>>; // [rows, capacity, groups·e]
@group(0) @binding(2) var<storage, read> values: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> rows: array<Row>;
@group(0) @binding(4) var<storage, read_write> parts: array<f32>; // [rows, heads, splits, e + 2]
@group(0) @binding(5) var<uniform> params: Params;

const LOW: f32 = -1e30;
const HEADS: u32 = 4u;
const KEYS: u32 = 32u;

fn row_of(x: vec4<f32>, lane: u32) -> vec4<f32> {
    return vec4(subgroupShuffle(x.x, lane), subgroupShuffle(x.y, lane), subgroupShuffle(x.z, lane), subgroupShuffle(x.w, lane));
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let share = params.heads / params.groups;
    let quads = (share + HEADS - 1u) / HEADS;
    let chunks = (params.e4 + 15u) / 16u;
    let id = group.y * groups.x + group.x;
    let chunk = id % chunks;
    let quad = id / chunks % quads;
    let split = id / (chunks * quads) % params.splits;
    let pair = id / (chunks * quads * params.splits) % params.groups;
    let row = id / (chunks * quads * params.splits * params.groups);
    if (row >= params.rows) {
        return;
    }
    let heads = min(share - quad * HEADS, HEADS);
    let head = pair * share + quad * HEADS;
    let start = rows[row].start;
    let after = rows[row].column + 1u;
    let per_split = (after - start + params.splits - 1u) / params.splits;
    let begin = min(start + split * per_split, after);
    let end = min(begin + per_split, after);
    let width = params.groups * params.e4;
    let cache = row * params.capacity * width + pair * params.e4;
    let query = (row * params.heads + head) * params.e4;
    let column = chunk * 16u + lane;
    let wide = chunk * 16u + 8u < params.e4;
    let near = min(column, params.e4 - 1u);
    let far = min(column + 8u, params.e4 - 1u);
    var m = vec4(LOW);
    var total = vec4(0.0);
    var sums: array<array<vec4<f32>, 2>, HEADS>;
    for (var tile = begin; tile < end; tile += KEYS) {
        let key = tile + lane + vec4(0u, 8u, 16u, 24u);
        let ik = cache + min(key, vec4(end - 1u)) * width;
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
                let kt = transpose(mat4x4<f32>(keys[ik.x + c], keys[ik.y + c], keys[ik.z + c], keys[ik.w + c]));
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
            let iv = cache + min(tile + i + vec4(0u, 8u, 16u, 24u), vec4(end - 1u)) * width;
            let v0 = mat4x4<f32>(values[iv.x + near], values[iv.y + near], values[iv.z + near], values[iv.w + near]);
            var v1 = mat4x4<f32>();
            if (wide) {
                v1 = mat4x4<f32>(values[iv.x + far], values[iv.y + far], values[iv.z + far], values[iv.w + far]);
            }
            for (var r = 0u; r < HEADS; r += 1u) {
                let weights = row_of(s[r], i);
                sums[r][0] += v0 * weights;
                sums[r][1] += v1 * weights;
            }
        }
    }
    let pitch = 4u * params.e4 + 2u;
    for (var r = 0u; r < HEADS; r += 1u) {
        let all = subgroupAdd(total[r]);
        if (r >= heads) {
            continue;
        }
        let to = ((row * params.heads + head + r) * params.splits + split) * pitch;
        if (column < params.e4) {
            for (var i = 0u; i < 4u; i += 1u) {
                parts[to + 4u * column + i] = sums[r][0][i];
            }
        }
        if (column + 8u < params.e4) {
            for (var i = 0u; i < 4u; i += 1u) {
                parts[to + 4u * column + 32u + i] = sums[r][1][i];
            }
        }
        if (column == 0u) {
            parts[to + 4u * params.e4] = m[r];
            parts[to + 4u * params.e4 + 1u] = all;
        }
    }
}
