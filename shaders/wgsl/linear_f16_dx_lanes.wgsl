// dx = dy·w where a subgroup has eight lanes; w holds two f16 a word; see linear_dx_lanes.wgsl.
// Twin: cpu/linear_f16.rs, `linear_f16_dx`.
struct Params { n: u32, out4: u32, k4: u32, first: u32 } // columns of dy and of w, in fours; the first tile

@group(0) @binding(0) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read> w: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read_write> dx: array<vec4<f32>>;
@group(0) @binding(3) var<uniform> params: Params;

// Rows 0..8 of a block of outputs.
fn add_outer(sums: ptr<function, array<vec4<f32>, 8>>, column: f32, row: vec4<f32>) {
    (*sums)[0] += subgroupBroadcast(column, 0u) * row;
    (*sums)[1] += subgroupBroadcast(column, 1u) * row;
    (*sums)[2] += subgroupBroadcast(column, 2u) * row;
    (*sums)[3] += subgroupBroadcast(column, 3u) * row;
    (*sums)[4] += subgroupBroadcast(column, 4u) * row;
    (*sums)[5] += subgroupBroadcast(column, 5u) * row;
    (*sums)[6] += subgroupBroadcast(column, 6u) * row;
    (*sums)[7] += subgroupBroadcast(column, 7u) * row;
}

fn add_four(sums: ptr<function, array<vec4<f32>, 8>>, columns: vec4<f32>, rows: mat4x4<f32>) {
    add_outer(sums, columns.x, rows[0]);
    add_outer(sums, columns.y, rows[1]);
    add_outer(sums, columns.z, rows[2]);
    add_outer(sums, columns.w, rows[3]);
}

fn four(packed: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(packed.x), unpack2x16float(packed.y));
}

fn store(sums: ptr<function, array<vec4<f32>, 8>>, first_row: u32, column: u32) {
    for (var i = 0u; i < 8u; i += 1u) {
        if (first_row + i < params.n && column < params.k4) {
            dx[(first_row + i) * params.k4 + column] = (*sums)[i];
        }
    }
}

@compute @workgroup_size(8)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let tiles = (params.n + 31u) / 32u;
    let tile = params.first + group.y * groups.x + group.x; // neighbours share columns of w
    let first_row = tile % tiles * 32u;
    let column = tile / tiles * 8u + lane;
    // Rows and columns beyond the last are read as the last, and not stored.
    let row = first_row + lane;
    let dy0 = min(row, params.n - 1u) * params.out4;
    let dy1 = min(row + 8u, params.n - 1u) * params.out4;
    let dy2 = min(row + 16u, params.n - 1u) * params.out4;
    let dy3 = min(row + 24u, params.n - 1u) * params.out4;
    let near = min(column, params.k4 - 1u);
    var sums0: array<vec4<f32>, 8>;
    var sums1: array<vec4<f32>, 8>;
    var sums2: array<vec4<f32>, 8>;
    var sums3: array<vec4<f32>, 8>;
    for (var j = 0u; j < params.out4; j += 1u) {
        let columns0 = dy[dy0 + j];
        let columns1 = dy[dy1 + j];
        let columns2 = dy[dy2 + j];
        let columns3 = dy[dy3 + j];
        let at = 4u * j * params.k4 + near;
        let rows = mat4x4<f32>(four(w[at]), four(w[at + params.k4]), four(w[at + 2u * params.k4]), four(w[at + 3u * params.k4]));
        add_four(&sums0, columns0, rows);
        add_four(&sums1, columns1, rows);
        add_four(&sums2, columns2, rows);
        add_four(&sums3, columns3, rows);
    }
    store(&sums0, first_row, column);
    store(&sums1, first_row + 8u, column);
    store(&sums2, first_row + 16u, column);
    store(&sums3, first_row + 24u, column);
}
