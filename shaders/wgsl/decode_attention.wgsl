// Attention of one new token a row over the keys from the beginning of its text. A workgroup takes a row, a key/value head and
// one of `splits` runs of keys, 64 at a time: a thread scores one key for all query heads of the group, then sums dimensions
// of the values. It leaves the sums of values, the largest score and the sum of exponentials; decode_combine.wgsl joins the
// splits. Twin: cpu/decode.rs, `decode_attention`.
struct Params {
    rows: u32, heads: u32, groups: u32, e4: u32, // e4: numbers of a head, in fours, at most 32
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

const WG: u32 = 64u;
const MOST_HEADS: u32 = 8u; // of a group
const MOST_FOURS: u32 = 32u;
var<workgroup> sh_q: array<vec4<f32>, MOST_HEADS * MOST_FOURS>;
var<workgroup> sh_p: array<f32, MOST_HEADS * WG>;
var<workgroup> sh_scale: array<f32, MOST_HEADS>; // what older sums shrink by

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let place = group.y * groups.x + group.x;
    let inside = place < params.rows * params.groups * params.splits;
    let safe = select(0u, place, inside);
    let split = safe % params.splits;
    let head = safe / params.splits % params.groups; // of keys and values
    let row = safe / params.splits / params.groups;
    let of_group = params.heads / params.groups;
    let e4 = params.e4;
    let start = rows[row].start;
    let after = rows[row].column + 1u;
    for (var i = thread; i < of_group * e4; i += WG) {
        sh_q[i] = q[(row * params.heads + head * of_group) * e4 + i] * params.scale;
    }
    workgroupBarrier();
    let stride = params.groups * e4; // of a column of the cache
    let cache = row * params.capacity * stride + head * e4;
    let per_split = (after - start + params.splits - 1u) / params.splits;
    let begin = min(start + split * per_split, after);
    let end = min(begin + per_split, after);
    // A thread's dimensions of the values, four at a time: `e4` of every query head, one after the other.
    var sums: array<vec4<f32>, 4>;
    var largest = -1e30; // of query head `thread`, as is `total`
    var total = 0.0;
    let jobs = of_group * e4;
    for (var first = begin; first < end; first += WG) {
        let key = min(first + thread, end - 1u);
        for (var h = 0u; h < of_group; h += 1u) {
            var score = 0.0;
            for (var i = 0u; i < e4; i += 1u) {
                score += dot(sh_q[h * e4 + i], keys[cache + key * stride + i]);
            }
            sh_p[h * WG + thread] = select(-1e30, score, first + thread < end);
        }
        workgroupBarrier();
        if (thread < of_group) {
            var most = largest;
            for (var i = 0u; i < WG; i += 1u) {
                most = max(most, sh_p[thread * WG + i]);
            }
            let shrink = exp(largest - most);
            total *= shrink;
            for (var i = 0u; i < min(WG, end - first); i += 1u) {
                let p = exp(sh_p[thread * WG + i] - most);
                total += p;
                sh_p[thread * WG + i] = p;
            }
            largest = most;
            sh_scale[thread] = shrink;
        }
        workgroupBarrier();
        for (var j = 0u; j < 4u; j += 1u) {
            let job = thread + j * WG;
            if (job < jobs) {
                let h = job / e4;
                var sum = sums[j] * sh_scale[h];
                for (var i = 0u; i < min(WG, end - first); i += 1u) {
                    sum += sh_p[h * WG + i] * values[cache + (first + i) * stride + job % e4];
                }
                sums[j] = sum;
            }
        }
        workgroupBarrier();
    }
    if (!inside) {
        return;
    }
    let pitch = 4u * e4 + 2u;
    let out = ((row * params.heads + head * of_group) * params.splits + split) * pitch; // of the group's first head
    if (thread < of_group) {
        parts[out + thread * params.splits * pitch + 4u * e4] = largest;
        parts[out + thread * params.splits * pitch + 4u * e4 + 1u] = total;
    }
    for (var j = 0u; j < 4u; j += 1u) {
        let job = thread + j * WG;
        if (job < jobs) {
            let at = out + job / e4 * params.splits * pitch + job % e4 * 4u;
            parts[at] = sums[j].x;
            parts[at + 1u] = sums[j].y;
            parts[at + 2u] = sums[j].z;
            parts[at + 3u] = sums[j].w;
        }
    }
}
