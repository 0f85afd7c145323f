// AdamW in place, as in adamw, with moments of eight bits: codes of the numbers of a map, times the largest size in each
// block of 256. A workgroup takes block after block, a thread every 64th element of one. The map holds 256 ascending
// numbers for m, then 256 for v. Twin: cpu/adamw_8bit.rs, `adamw_8bit`.
struct Params {
    len: u32,
    decay: f32,
    beta1: f32,
    beta2: f32,
    eps: f32,
    step_size: f32,
    inverse_root: f32,
    grad_scale: f32,
}

@group(0) @binding(0) var<storage, read> grad: array<f32>;
@group(0) @binding(1) var<storage, read_write> param: array<f32>;
@group(0) @binding(2) var<storage, read_write> m: array<u32>;
@group(0) @binding(3) var<storage, read_write> v: array<u32>;
@group(0) @binding(4) var<storage, read_write> m_absmax: array<f32>;
@group(0) @binding(5) var<storage, read_write> v_absmax: array<f32>;
@group(0) @binding(6) var<storage, read> map: array<f32>;
@group(0) @binding(7) var<uniform> params: Params;

const WG: u32 = 64u;
const BLOCK: u32 = 256u;
const SMALLEST: f32 = 1e-37; // a block below it is stored as zeros, for its inverse may be infinite
var<workgroup> sh_map: array<f32, 512>;
var<workgroup> sh_absmax: array<vec2<f32>, WG>; // of m and v
var<workgroup> sh_codes: array<vec2<u32>, BLOCK>; // of m and v

// Code of the number next to `value` in the map that begins at `first`; of two as near, the smaller.
fn nearest(value: f32, first: u32) -> u32 {
    var below = 0u; // the last code whose number is less than the value
    for (var width = 128u; width > 0u; width /= 2u) {
        below += select(0u, width, sh_map[first + below + width] < value);
    }
    let above = min(below + 1u, 255u);
    return select(below, above, value > (sh_map[first + below] + sh_map[first + above]) / 2.0);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>) {
    for (var code = local.x; code < 512u; code += WG) {
        sh_map[code] = map[code];
    }
    workgroupBarrier();
    for (var block = group.x; block * BLOCK < params.len; block += groups.x) {
        var m_new = vec4<f32>();
        var v_new = vec4<f32>();
        for (var j = 0u; j < 4u; j += 1u) {
            let i = block * BLOCK + local.x + j * WG;
            if (i < params.len) {
                let bits = i % 4u * 8u;
                let m_old = sh_map[(m[i / 4u] >> bits) & 255u] * m_absmax[block];
                let v_old = sh_map[256u + ((v[i / 4u] >> bits) & 255u)] * v_absmax[block];
                let g = grad[i] * params.grad_scale;
                m_new[j] = params.beta1 * m_old + (1.0 - params.beta1) * g;
                v_new[j] = params.beta2 * v_old + (1.0 - params.beta2) * g * g;
                param[i] = param[i] * params.decay - params.step_size * m_new[j] / (sqrt(v_new[j]) * params.inverse_root + params.eps);
            }
        }
        let sizes = abs(m_new);
        sh_absmax[local.x] = vec2<f32>(
            max(max(sizes.x, sizes.y), max(sizes.z, sizes.w)),
            max(max(v_new.x, v_new.y), max(v_new.z, v_new.w)),
        );
        workgroupBarrier();
        for (var width = WG / 2u; width > 0u; width /= 2u) {
            if (local.x < width) {
                sh_absmax[local.x] = max(sh_absmax[local.x], sh_absmax[local.x + width]);
            }
            workgroupBarrier();
        }
        let absmax = sh_absmax[0];
        let inverse = select(vec2<f32>(), 1.0 / max(absmax, vec2<f32>(SMALLEST)), absmax >= vec2<f32>(SMALLEST));
        for (var j = 0u; j < 4u; j += 1u) {
            // A v above 0 never becomes 0: the next step would divide by eps alone.
            let v_code = max(nearest(v_new[j] * inverse.y, 256u), select(0u, 1u, v_new[j] > 0.0));
            sh_codes[local.x + j * WG] = vec2<u32>(nearest(m_new[j] * inverse.x, 0u), v_code);
        }
        workgroupBarrier();
        let own = local.x * 4u;
        if (block * BLOCK + own < params.len) {
            var words = vec2<u32>();
            for (var j = 0u; j < 4u; j += 1u) {
                words |= sh_codes[own + j] << vec2<u32>(j * 8u);
            }
            m[block * WG + local.x] = words.x;
            v[block * WG + local.x] = words.y;
        }
        if (local.x == 0u) {
            m_absmax[block] = absmax.x;
            v_absmax[block] = absmax.y;
        }
    }
}
