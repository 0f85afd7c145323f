// part[c] = Σ dy·x·r over the rows of chunk c; one thread a vector of four columns, one workgroup row a chunk of rows.
// The sum of the parts is dw. d is a multiple of 4. Twin: cpu/rms_norm.rs, `rms_norm_dw`.
struct Params { rows: u32, d: u32, chunk: u32, unused: u32 }

@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> scales: array<f32>;
@group(0) @binding(3) var<storage, read_write> part: array<vec4<f32>>;
@group(0) @binding(4) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let d = params.d / 4u;
    let column = id.x;
    if (column >= d) {
        return;
    }
    var sum = vec4<f32>();
    let end = min((id.y + 1u) * params.chunk, params.rows);
    for (var row = id.y * params.chunk; row < end; row += 1u) {
        sum += dy[row * d + column] * x[row * d + column] * scales[row];
    }
    part[id.y * d + column] = sum;
}
