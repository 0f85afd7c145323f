// y1 = x1·cos − x2·sin and y2 = x2·cos + x1·sin, where x1 and x2 are the halves of a head; `direction` −1 turns back.
// One thread four dimensions of either half, for all heads of a row. Twin: cpu/rope.rs, `rope`.
struct Params { n: u32, heads: u32, half4: u32, table_rows: u32, direction: f32, unused0: u32, unused1: u32, unused2: u32 }

@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> cosines: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> sines: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(4) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = (group.y * groups.x + group.x) * 64u + local;
    let row = i / params.half4;
    let c = i % params.half4;
    if (row >= params.n) {
        return;
    }
    let cosine = cosines[row % params.table_rows * params.half4 + c];
    let sine = sines[row % params.table_rows * params.half4 + c] * params.direction;
    for (var head = 0u; head < params.heads; head += 1u) {
        let at = (row * params.heads + head) * 2u * params.half4 + c;
        let x1 = x[at];
        let x2 = x[at + params.half4];
        y[at] = x1 * cosine - x2 * sine;
        y[at + params.half4] = x2 * cosine + x1 * sine;
    }
}
