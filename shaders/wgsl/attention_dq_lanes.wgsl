// dq as in attention_dq.wgsl for devices whose subgroups have 8 threads; threads and data as in attention_lanes.wgsl.
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

const ROWS: u32 = 32u;
alias Eight = array<vec4<f32>, 8>; // of numbers, each for the four rows of a lane
var<workgroup> sh_dq: array<vec4<f32>, 1024>; // [columns / 4, 4, lane]

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

// Turns scores of eight keys into weights, where `stat` are lse and delta of the lane's queries.
fn weights(s: ptr<function, Eight>, dp: ptr<function, Eight>, key: u32, start: vec4<u32>, position: vec4<u32>, stat: mat2x4<f32>) {
    for (var i = 0u; i < 8u; i += 1u) {
        let at = vec4(key + i);
        let ds = exp((*s)[i] * params.scale - stat[0]) * ((*dp)[i] - stat[1]) * params.scale;
        (*s)[i] = select(vec4(0.0), ds, (at >= start) & (at <= position));
    }
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
    let at = row * params.h + head;
    let iq = at * params.e4;
    let start = vec4<u32>(max(vec4(starts[row.x], starts[row.y], starts[row.z], starts[row.w]), vec4(0)));
    let position = params.offset + query;
    let stat = transpose(mat4x2<f32>(stats[at.x], stats[at.y], stats[at.z], stats[at.w]));
    let begin = u32(max(starts[batch * params.t + first], 0));
    let end = params.offset + min(first + ROWS, params.t);
    let width = params.g * params.e4;
    let keys = batch * params.capacity * width + head / (params.h / params.g) * params.e4;
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
        var dp0 = Eight();
        var dp1 = Eight();
        var dp2 = Eight();
        var dp3 = Eight();
        for (var c = 0u; c < params.e4; c += 1u) {
            let dt = transpose(mat4x4<f32>(dout[iq.x + c], dout[iq.y + c], dout[iq.z + c], dout[iq.w + c]));
            multiply(&dp0, v[ik.x + c], dt);
            multiply(&dp1, v[ik.y + c], dt);
            multiply(&dp2, v[ik.z + c], dt);
            multiply(&dp3, v[ik.w + c], dt);
        }
        weights(&s0, &dp0, tile, start, position, stat);
        weights(&s1, &dp1, tile + 8u, start, position, stat);
        weights(&s2, &dp2, tile + 16u, start, position, stat);
        weights(&s3, &dp3, tile + 24u, start, position, stat);
        for (var c = 0u; c < params.e4; c += 1u) {
            let at = c * ROWS + lane;
            var o = mat4x4<f32>();
            if (tile > begin) {
                o = mat4x4<f32>(sh_dq[at], sh_dq[at + 8u], sh_dq[at + 16u], sh_dq[at + 24u]);
            }
            weigh(&o, k[ik.x + c], &s0);
            weigh(&o, k[ik.y + c], &s1);
            weigh(&o, k[ik.z + c], &s2);
            weigh(&o, k[ik.w + c], &s3);
            sh_dq[at] = o[0];
            sh_dq[at + 8u] = o[1];
            sh_dq[at + 16u] = o[2];
            sh_dq[at + 24u] = o[3];
        }
    }
    for (var c = 0u; c < params.e4; c += 1u) {
        let at = c * ROWS + lane;
        let rows = transpose(mat4x4<f32>(sh_dq[at], sh_dq[at + 8u], sh_dq[at + 16u], sh_dq[at + 24u]));
        for (var i = 0u; i < 4u; i += 1u) {
            if (query[i] < params.t) {
                dq[iq[i] + c] = rows[i];
            }
        }
    }
}
