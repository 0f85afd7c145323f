// `attention` for few queries: a workgroup has one query of up to four heads that share their keys and values, and 64
// columns of `out`. Its threads score eight keys each, 512 in all, then sum values: thread (part, x) of 8 by 8 every
// eighth four keys of the columns x and x + 8 (in fours). At the end the parts are added, one sum by each row of threads.
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
const WG: u32 = 64u;
const HEADS: u32 = 4u;
const FOURS: u32 = 2u * WG; // of keys in a tile
var<workgroup> sh_p: array<vec4<f32>, HEADS * FOURS>; // [head, four]; at the end the sums as [sum, thread]
var<workgroup> sh_heads: array<vec4<f32>, WG>; // a number of each head
var<workgroup> sh_from: u32;

fn largest(x: vec4<f32>) -> f32 {
    return max(max(x.x, x.y), max(x.z, x.w));
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
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
    let end = params.offset + row % params.t + 1u;
    let width = params.g * params.e4;
    let keys = row / params.t * params.capacity * width + pair * params.e4;
    let query = (row * params.h + head) * params.e4;
    let part = local / 8u;
    let column = chunk * 16u + local % 8u;
    let wide = chunk * 16u + 8u < params.e4;
    let near = min(column, params.e4 - 1u);
    let far = min(column + 8u, params.e4 - 1u);
    if (local == 0u) {
        sh_from = u32(max(starts[row], 0));
    }
    let begin = workgroupUniformLoad(&sh_from);
    var m = vec4(LOW);
    var total = vec4(0.0);
    var sums: array<vec4<f32>, 2u * HEADS>;
    for (var tile = begin; tile < end; tile += 4u * FOURS) {
        let key = tile + 4u * local + vec4(0u, 1u, 2u, 3u);
        let next = key + 4u * WG;
        var s = mat4x4<f32>();
        var z = mat4x4<f32>();
        if (key.x < end) {
            let ik = keys + min(key, vec4(end - 1u)) * width;
            let iz = keys + min(next, vec4(end - 1u)) * width;
            for (var c = 0u; c < params.e4; c += 1u) {
                let kt = transpose(mat4x4<f32>(k[ik.x + c], k[ik.y + c], k[ik.z + c], k[ik.w + c]));
                let zt = transpose(mat4x4<f32>(k[iz.x + c], k[iz.y + c], k[iz.z + c], k[iz.w + c]));
                for (var r = 0u; r < HEADS; r += 1u) {
                    if (r < heads) {
                        let of_head = q[query + r * params.e4 + c];
                        s[r] += kt * of_head;
                        z[r] += zt * of_head;
                    }
                }
            }
        }
        var high = vec4(LOW);
        for (var r = 0u; r < HEADS; r += 1u) {
            s[r] = select(vec4(LOW), s[r] * params.scale, key < vec4(end));
            z[r] = select(vec4(LOW), z[r] * params.scale, next < vec4(end));
            high[r] = largest(max(s[r], z[r]));
        }
        sh_heads[local] = high;
        workgroupBarrier();
        if (local < 8u) {
            for (var i = 8u; i < WG; i += 8u) {
                high = max(high, sh_heads[local + i]);
            }
            sh_heads[local] = high;
        }
        workgroupBarrier();
        let before = m;
        for (var i = 0u; i < 8u; i += 1u) {
            m = max(m, sh_heads[i]);
        }
        let shrink = exp(before - m);
        total *= shrink;
        for (var r = 0u; r < HEADS; r += 1u) {
            sh_p[r * FOURS + local] = select(exp(s[r] - m[r]), vec4(0.0), s[r] == vec4(LOW));
            sh_p[r * FOURS + local + WG] = select(exp(z[r] - m[r]), vec4(0.0), z[r] == vec4(LOW));
            sums[2u * r] *= shrink[r];
            sums[2u * r + 1u] *= shrink[r];
        }
        workgroupBarrier();
        for (var j = part; j < min((end - tile + 3u) / 4u, FOURS); j += 8u) {
            let iv = keys + min(tile + 4u * j + vec4(0u, 1u, 2u, 3u), vec4(end - 1u)) * width;
            let v0 = mat4x4<f32>(v[iv.x + near], v[iv.y + near], v[iv.z + near], v[iv.w + near]);
            var v1 = mat4x4<f32>();
            if (wide) {
                v1 = mat4x4<f32>(v[iv.x + far], v[iv.y + far], v[iv.z + far], v[iv.w + far]);
            }
            for (var r = 0u; r < HEADS; r += 1u) {
                if (r < heads) {
                    let weights = sh_p[r * FOURS + j];
                    total[r] += dot(weights, vec4(1.0));
                    sums[2u * r] += v0 * weights;
                    sums[2u * r + 1u] += v1 * weights;
                }
            }
        }
        workgroupBarrier();
    }
    for (var i = 0u; i < 2u * HEADS; i += 1u) {
        sh_p[i * WG + local] = sums[i];
    }
    sh_heads[local] = total;
    workgroupBarrier();
    let r = part / 2u;
    let c = column + 8u * (part % 2u);
    if (r >= heads || c >= params.e4) {
        return;
    }
    var sum = vec4(0.0);
    var all = vec4(0.0);
    for (var i = 0u; i < WG; i += 8u) {
        sum += sh_p[part * WG + i + local % 8u];
        all += sh_heads[i];
    }
    out[query + r * params.e4 + c] = sum / all[r];
    if (c == 0u) {
        lse[row * params.h + head + r] = m[r] + log(all[r]);
    }
}
