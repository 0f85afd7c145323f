// y[i] = row ids[i] − first of a block of a table; zeros where the block does not have it. One workgroup a row of y,
// threads stride over its vectors of four columns; d is a multiple of 4. Twin: cpu/embedding.rs, `embedding`.
struct Params { n: u32, d: u32, rows: u32, first: u32 }

@group(0) @binding(0) var<storage, read> table: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> ids: array<i32>;
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = group.y * groups.x + group.x;
    if (i >= params.n) {
        return;
    }
    let d = params.d / 4u;
    let row = u32(ids[i]) - params.first; // below the first it wraps: beyond the last
    for (var column = local; column < d; column += 64u) {
        var numbers = vec4<f32>();
        if (row < params.rows) {
            numbers = table[row * d + column];
        }
        y[i * d + column] = numbers;
    }
}
