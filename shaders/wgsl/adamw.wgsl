// AdamW in place: m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g², p ← p·decay − step_size·m / (√v·inverse_root + eps).
// Eight threads go through 64 vectors of four elements side by side: whole cache lines, and long runs where a processor
// stands in for a GPU. len is a multiple of 4. Twin: cpu/adamw.rs, `adamw`.
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

@group(0) @binding(0) var<storage, read> grad: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> param: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> m: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> v: array<vec4<f32>>;
@group(0) @binding(4) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let thread = (group.y * groups.x + group.x) * 64u + local;
    let first = thread / 8u * 64u + thread % 8u;
    let end = min(first + 64u, params.len / 4u);
    for (var i = first; i < end; i += 8u) {
        let g = grad[i] * params.grad_scale;
        let m_new = params.beta1 * m[i] + (1.0 - params.beta1) * g;
        let v_new = params.beta2 * v[i] + (1.0 - params.beta2) * g * g;
        m[i] = m_new;
        v[i] = v_new;
        param[i] = param[i] * params.decay - params.step_size * m_new / (sqrt(v_new) * params.inverse_root + params.eps);
    }
}
