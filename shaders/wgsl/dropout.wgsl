// y = x·scale where a hash of the place and the seed reaches the threshold, 0 elsewhere: for a rate p, a threshold of
// p·2³² and a scale of 1 / (1 − p). x begins at the place `first`. The same call on the gradient gives the gradient.
// Threads stride over the elements.
// Twin: cpu/dropout.rs, `dropout`.
struct Params { len: u32, threshold: u32, scale: f32, seed0: u32, seed1: u32, first: u32, unused0: u32, unused1: u32 }

@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;
@group(0) @binding(2) var<uniform> params: Params;

fn scramble(word: u32) -> u32 {
    let once = (word ^ (word >> 16u)) * 0x7feb352du;
    let twice = (once ^ (once >> 15u)) * 0x846ca68bu;
    return twice ^ (twice >> 16u);
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let first = scramble(params.seed0);
    let second = scramble(params.seed1 ^ first); // seeds of neighbouring numbers differ everywhere
    for (var i = id.x; i < params.len; i += groups.x * 64u) {
        let keeps = scramble(scramble((params.first + i) ^ first) + second) >= params.threshold;
        y[i] = select(0.0, x[i] * params.scale, keeps);
    }
}
