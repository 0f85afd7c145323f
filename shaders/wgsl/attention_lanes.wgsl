// `attention` for devices whose subgroups have 8 threads: workgroups of one subgroup and nothing but wide loads, shared by
// broadcasts. A workgroup has 32 queries of one head, each lane those at lane + (0, 8, 16, 24), and walks over its keys 32 at
// a time with running maxima and sums; the unfinished rows of `out` wait in workgroup memory, which lanes do not share.
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
const ROWS: u32 = 32u;
alias Eight = array<vec4<f32>, 8>; // of numbers, each for the four rows of a lane
var<workgroup> sh_out: array<vec4<f32>, 1024>; // [columns / 4, 4, lane]

// Adds four columns' part of the products of the rows that the lanes hold in `a` with the rows in `b`, a column each.
fn multiply(c: ptr<function, Eight>, a: vec4<f32>, b: mat4x4<f32>) {
    for (var i = 0u; i < 8u; i += 1u) {
        (*c)[i] += b * vec4(subgroupShuffle(a.x, i), subgroupShuffle(a.y, i), subgroupShuffle(a.z, i), subgroupShuffle(a.w, i));
    }
}

// Adds the rows that the lanes hold in `a`, weighted, to four columns of `o`.
fn weigh(o: ptr<function, mat4x4<f32>>, a: vec4<f32>, w: ptr<function, Eight>) {
    for (var i = 0u; i < 8u; i += 1u) {
        (*o)[0] += subgroupShuffle(a.x, i) * (*w)[i];
        (*o)[1] += subgroupShuffle(a.y, i) * (*w)[i];
        (*o)[2] += subgroupShuffle(a.z, i) * (*w)[i];
        (*o)[3] += subgroupShuffle(a.w, i) * (*w)[i];
    }
}

fn mask(s: ptr<function, Eight>, key: u32, start: vec4<u32>, position: vec4<u32>) -> vec4<f32> {
    var high = vec4(LOW);
    for (var i = 0u; i < 8u; i += 1u) {
        let at = vec4(key + i);
        (*s)[i] = select(vec4(LOW), (*s)[i] * params.scale, (at >= start) & (at <= position));
        high = max(high, (*s)[i]);
    }
    return high;
}

fn exponentials(s: ptr<function, Eight>, largest: vec4<f32>) -> vec4<f32> {
    var total = vec4(0.0);
    for (var i = 0u; i < 8u; i += 1u) {
        (*s)[i] = select(exp((*s)[i] - largest), vec4(0.0), (*s)[i] == vec4(LOW));
        total += (*s)[i];
    }
    return total;
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let blocks = (params.t + ROWS - 1u) / ROWS;
    let id = group.y * groups.x + group.x;
    let first = id % blocks * ROWS;
    let head = id / blocks % params.h;
    let batch = id / (blocks * params.h);
    if (batch >= params.b) {
        return;
    }
    let lanes = lane + vec4(0u, 8u, 16u, 24u);
    let query = first + lanes;
    let row = batch * params.t + min(query, vec4(params.t - 1u));
    let iq = (row * params.h + head) * params.e4;
    let start = vec4<u32>(max(vec4(starts[row.x], starts[row.y], starts[row.z], starts[row.w]), vec4(0)));
    let position = params.offset + query;
    let begin = u32(max(starts[batch * params.t + first], 0));
    let end = params.offset + min(first + ROWS, params.t);
    let width = params.g * params.e4;
    let keys = batch * params.capacity * width + head / (params.h / params.g) * params.e4;
    var largest = vec4(LOW);
    var total = vec4(0.0);
    for (var tile = begin; tile < end; tile += ROWS) {
        let ik = keys + min(tile + lanes, vec4(end - 1u)) * width;
        var s0 = Eight();
        var s1 = Eight();
        var s2 = Eight();
        var s3 = Eight();
        for (var c = 0u; c < params.e4; c += 1u) {
            let qt = transpose(mat4x4<f32>(q[iq.x + c], q[iq.y + c], q[iq.z + c], q[iq.w + c]));
            multiply(&s0, k[ik.x + c], qt);
            multiply(&s1, k[ik.y + c], qt);
            multiply(&s2, k[ik.z + c], qt);
            multiply(&s3, k[ik.w + c], qt);
        }
        let before = largest;
        largest = max(largest, max(mask(&s0, tile, start, position), mask(&s1, tile + 8u, start, position)));
        largest = max(largest, max(mask(&s2, tile + 16u, start, position), mask(&s3, tile + 24u, start, position)));
        let shrink = exp(before - largest);
        total = total * shrink + exponentials(&s0, largest) + exponentials(&s1, largest);
        total += exponentials(&s2, largest) + exponentials(&s3, largest);
        for (var c = 0u; c < params.e4; c += 1u) {
            let at = c * ROWS + lane;
            var o = mat4x4<f32>();
            if (tile > begin) {
                o = mat4x4<f32>(sh_out[at] * shrink, sh_out[at + 8u] * shrink, sh_out[at + 16u] * shrink, sh_out[at + 24u] * shrink);
            }
            weigh(&o, v[ik.x + c], &s0);
            weigh(&o, v[ik.y + c], &s1);
            weigh(&o, v[ik.z + c], &s2);
            weigh(&o, v[ik.w + c], &s3);
            sh_out[at] = o[0];
            sh_out[at + 8u] = o[1];
            sh_out[at + 16u] = o[2];
            sh_out[at + 24u] = o[3];
        }
    }
    for (var c = 0u; c < params.e4; c += 1u) {
        let at = c * ROWS + lane;
        let rows = transpose(mat4x4<f32>(sh_out[at] / total, sh_out[at + 8u] / total, sh_out[at + 16u] / total, sh_out[at + 24u] / total));
        for (var i = 0u; i < 4u; i += 1u) {
            if (query[i] < params.t) {
                out[iq[i] + c] = rows[i];
            }
        }
    }
    for (var i = 0u; i < 4u; i += 1u) {
        if (query[i] < params.t) {
            lse[row[i] * params.h + head] = largest[i] + log(total[i]);
        }
    }
}
