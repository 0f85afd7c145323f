// stats = (lse, Σ dout·out) of every query and head, as the gradients of attention need them; one thread each.
// Twin: cpu/attention.rs, `attention_delta`.
struct Params { n: u32, e4: u32, unused0: u32, unused1: u32 }

@group(0) @binding(0) var<storage, read> dout: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> out: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> lse: array<f32>;
@group(0) @binding(3) var<storage, read_write> stats: array<vec2<f32>>;
@group(0) @binding(4) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i >= params.n) {
        return;
    }
    var sum = vec4(0.0);
    for (var c = 0u; c < params.e4; c += 1u) {
        sum += dout[i * params.e4 + c] * out[i * params.e4 + c];
    }
    stats[i] = vec2(lse[i], dot(sum, vec4(1.0)));
}
