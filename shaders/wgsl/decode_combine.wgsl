// Joins what decode_attention.wgsl left of the splits of every head: Σ exp(m − max)·sums / Σ exp(m − max)·totals.
// A thread makes one number of the output. Twin: cpu/decode.rs, `decode_combine`.
struct Params { heads: u32, e: u32, splits: u32, unused: u32 } // heads: of all rows

@group(0) @binding(0) var<storage, read> parts: array<f32>; // [heads, splits, e + 2]
@group(0) @binding(1) var<storage, read_write> y: array<f32>; // [heads, e]
@group(0) @binding(2) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let i = (group.y * groups.x + group.x) * 64u + thread;
    if (i >= params.heads * params.e) {
        return;
    }
    let pitch = params.e + 2u;
    let base = i / params.e * params.splits * pitch;
    var largest = -1e30;
    for (var split = 0u; split < params.splits; split += 1u) {
        largest = max(largest, parts[base + split * pitch + params.e]);
    }
    var sum = 0.0;
    var total = 0.0;
    for (var split = 0u; split < params.splits; split += 1u) {
        let share = exp(parts[base + split * pitch + params.e] - largest);
        sum += share * parts[base + split * pitch + i % params.e];
        total += share * parts[base + split * pitch + params.e + 1u];
    }
    y[i] = sum / total;
}
