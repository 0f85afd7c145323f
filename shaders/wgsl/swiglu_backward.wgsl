// dgate = dy·up·σ·(1 + gate·(1 − σ)) and dup = dy·gate·σ with σ = σ(gate); one thread four elements.
// Twin: cpu/swiglu.rs, `swiglu_backward`.
struct Params { n4: u32, unused0: u32, unused1: u32, unused2: u32 }

@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> gate: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> up: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dgate: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> dup: array<vec4<f32>>;
@group(0) @binding(5) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    if (i >= params.n4) {
        return;
    }
    let x = gate[i];
    let small = exp(-abs(x)); // never too large
    let sigmoid = select(small, vec4(1.0), x >= vec4(0.0)) / (1.0 + small);
    let d = dy[i];
    dgate[i] = d * up[i] * sigmoid * (1.0 + x * (1.0 - sigmoid));
    dup[i] = d * x * sigmoid;
}
