// y[i] = row ids[i] − first of a block of a table that holds two f16 a word; zeros where the block does not have it.
// Threads stride over the words. Twin: cpu/embedding_f16.rs, `embedding_f16`.
struct Params { n: u32, words: u32, rows: u32, first: u32 } // words of a row

@group(0) @binding(0) var<storage, read> table: array<u32>;
@group(0) @binding(1) var<storage, read> ids: array<i32>;
@group(0) @binding(2) var<storage, read_write> y: array<vec2<f32>>;
@group(0) @binding(3) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < params.n * params.words; i += groups.x * 64u) {
        let row = u32(ids[i / params.words]) - params.first; // below the first it wraps: beyond the last
        var pair = vec2<f32>();
        if (row < params.rows) {
            pair = unpack2x16float(table[row * params.words + i % params.words]);
        }
        y[i] = pair;
    }
}
