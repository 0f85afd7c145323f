// x ← x + y, four numbers a thread. Twin: cpu/decode.rs, `decode_add`.
struct Params { fours: u32, unused0: u32, unused1: u32, unused2: u32 }

@group(0) @binding(0) var<storage, read> y: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> x: array<vec4<f32>>;
@group(0) @binding(2) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let i = (group.y * groups.x + group.x) * 64u + thread;
    if (i < params.fours) {
        x[i] += y[i];
    }
}
