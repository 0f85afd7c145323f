// dk or dv as in attention_dkv.wgsl for devices whose subgroups have 8 threads: threads and data as in
// attention_lanes.wgsl with keys and queries exchanged.
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

const ROWS: u32 = 32u;
alias Eight = array<vec4<f32>, 8>; // of numbers, each for the four rows of a lane
var<workgroup> sh_sums: array<vec4<f32>, 1024>; // [columns / 4, 4, lane]

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

// Turns scores of eight queries into weights for a sum of `dout`. A lane has of one query the log-sum-exp, the first key
// that it sees and the key after the last.
fn probabilities(s: ptr<function, Eight>, key: vec4<u32>, lse: f32, start: u32, after: u32) {
    for (var i = 0u; i < 8u; i += 1u) {
        let p = exp((*s)[i] * params.scale - subgroupShuffle(lse, i));
        (*s)[i] = select(vec4(0.0), p, (key >= vec4(subgroupShuffle(start, i))) & (key < vec4(subgroupShuffle(after, i))));
    }
}

// Turns those into weights for a sum of `q`.
fn slopes(p: ptr<function, Eight>, dp: ptr<function, Eight>, delta: f32) {
    for (var i = 0u; i < 8u; i += 1u) {
        (*p)[i] *= ((*dp)[i] - subgroupShuffle(delta, i)) * params.scale;
    }
}

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

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let blocks = (params.capacity + ROWS - 1u) / ROWS;
    let id = group.y * groups.x + group.x;
    let first = id % blocks * ROWS;
    let of_k = id / blocks % 2u == 0u;
    let pair = id / (blocks * 2u) % params.g;
    let batch = id / (blocks * 2u * params.g);
    if (batch >= params.b) {
        return;
    }
    let share = params.h / params.g;
    let lanes = lane + vec4(0u, 8u, 16u, 24u);
    let key = first + lanes;
    let ik = ((batch * params.capacity + min(key, vec4(params.capacity - 1u))) * params.g + pair) * params.e4;
    let begin = max(first, params.offset) - params.offset;
    let end = select(0u, queries_from(batch, first + ROWS - 1u), first < params.offset + params.t);
    for (var c = 0u; c < params.e4 * ROWS; c += 8u) {
        sh_sums[c + lane] = vec4(0.0);
    }
    for (var head = pair * share; head < (pair + 1u) * share; head += 1u) {
        for (var tile = begin; tile < end; tile += ROWS) {
            let query = tile + lanes;
            let row = batch * params.t + min(query, vec4(params.t - 1u));
            let at = row * params.h + head;
            let iq = at * params.e4;
            let start = vec4<u32>(max(vec4(starts[row.x], starts[row.y], starts[row.z], starts[row.w]), vec4(0)));
            let after = select(vec4(0u), params.offset + query + 1u, query < vec4(params.t));
            let stat = transpose(mat4x2<f32>(stats[at.x], stats[at.y], stats[at.z], stats[at.w]));
            var s0 = Eight();
            var s1 = Eight();
            var s2 = Eight();
            var s3 = Eight();
            for (var c = 0u; c < params.e4; c += 1u) {
                let kt = transpose(mat4x4<f32>(k[ik.x + c], k[ik.y + c], k[ik.z + c], k[ik.w + c]));
                multiply(&s0, q[iq.x + c], kt);
                multiply(&s1, q[iq.y + c], kt);
                multiply(&s2, q[iq.z + c], kt);
                multiply(&s3, q[iq.w + c], kt);
            }
            probabilities(&s0, key, stat[0].x, start.x, after.x);
            probabilities(&s1, key, stat[0].y, start.y, after.y);
            probabilities(&s2, key, stat[0].z, start.z, after.z);
            probabilities(&s3, key, stat[0].w, start.w, after.w);
            if (of_k) {
                var dp0 = Eight();
                var dp1 = Eight();
                var dp2 = Eight();
                var dp3 = Eight();
                for (var c = 0u; c < params.e4; c += 1u) {
                    let vt = transpose(mat4x4<f32>(v[ik.x + c], v[ik.y + c], v[ik.z + c], v[ik.w + c]));
                    multiply(&dp0, dout[iq.x + c], vt);
                    multiply(&dp1, dout[iq.y + c], vt);
                    multiply(&dp2, dout[iq.z + c], vt);
                    multiply(&dp3, dout[iq.w + c], vt);
                }
                slopes(&s0, &dp0, stat[1].x);
                slopes(&s1, &dp1, stat[1].y);
                slopes(&s2, &dp2, stat[1].z);
                slopes(&s3, &dp3, stat[1].w);
            }
            for (var c = 0u; c < params.e4; c += 1u) {
                let to = c * ROWS + lane;
                var a: mat4x4<f32>;
                if (of_k) {
                    a = mat4x4<f32>(q[iq.x + c], q[iq.y + c], q[iq.z + c], q[iq.w + c]);
                } else {
                    a = mat4x4<f32>(dout[iq.x + c], dout[iq.y + c], dout[iq.z + c], dout[iq.w + c]);
                }
                var o = mat4x4<f32>(sh_sums[to], sh_sums[to + 8u], sh_sums[to + 16u], sh_sums[to + 24u]);
                weigh(&o, a[0], &s0);
                weigh(&o, a[1], &s1);
                weigh(&o, a[2], &s2);
                weigh(&o, a[3], &s3);
                sh_sums[to] = o[0];
                sh_sums[to + 8u] = o[1];
                sh_sums[to + 16u] = o[2];
                sh_sums[to + 24u] = o[3];
            }
        }
    }
    for (var c = 0u; c < params.e4; c += 1u) {
        let from_ = c * ROWS + lane;
        let rows = transpose(mat4x4<f32>(sh_sums[from_], sh_sums[from_ + 8u], sh_sums[from_ + 16u], sh_sums[from_ + 24u]));
        for (var i = 0u; i < 4u; i += 1u) {
            if (key[i] < params.capacity) {
                if (of_k) {
                    dk[ik[i] + c] = rows[i];
                } else {
                    dv[ik[i] + c] = rows[i];
                }
            }
        }
    }
}
