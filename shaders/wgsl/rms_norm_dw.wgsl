// part[c] = Σ dy·x·r over the rows of chunk c; one thread a column, one workgroup row a chunk of rows.
// The sum of the parts is dw. Twin: cpu/rms_norm.rs, `rms_norm_dw`.
struct Params { rows: u32, d: u32, chunk: u32, unused: u32 }

@group(0) @binding(0) var<storage, read> dy: array<f32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> scales: array<f32>;
@group(0) @binding(3) var<storage, read_write> part: array<f32>;
@group(0) @binding(4) var<uniform> params: Params;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let column = id.x;
    if (column >= params.d) {
        return;
    }
    var sum = 0.0;
    let end = min((id.y + 1u) * params.chunk, params.rows);
    for (var row = id.y * params.chunk; row < end; row += 1u) {
        sum += dy[row * params.d + column] * x[row * params.d + column] * scales[row];
    }
    part[id.y * params.d + column] = sum;
}
